"""Look at one row: exactly the frames its network saw, its boxes, and whether it computes to the same again."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.audio import open_audio
from extract.datasets import Dataset, load_dataset
from extract.decode import VideoError, open_source
from extract.networks.spec import READS
from extract.networks.text_rows import unpack_items
from extract.sampling import GRID_AXES, instants, sampling_from
from extract.transforms import Resize
from pipelines.flow_source import flow_source
from pipelines.known_weights import network_behind
from pipelines.reading import Reading, ReadRow, captions_of, read_captions, read_video
from stores import OK, STATUS_NAMES, Store, open_store

__all__ = ["inspect_clip"]

# How far a stored value may lie from the same value computed again, in standard deviations of the row, beside the
# rounding of the stored dtype itself: another CPU type or batch shape moves float32 sums by less, bfloat16 by 1 %.
TOLERANCE = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 5e-2}
THUMBNAIL = 168  # pixels of a frame's longer side in the sheet
COLUMNS = 8


@dataclass(frozen=True)
class Seen:
    """What the network was given for one row."""

    read: ReadRow
    reading: Reading
    times: np.ndarray  # float64 (T,): the instants asked for; empty where no frames are read
    width: int  # of the source
    height: int
    changed: bool  # the file is not the one that the store's rows came from


def inspect_clip(
    path: str | Path,
    clip: str,
    *,
    draw: int = 0,
    dataset: str | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
    recompute: bool = False,
    weights: str | None = None,
    out: str | Path | None = None,
) -> dict:
    """Write a contact sheet of a row's frames with times, boxes, labels and feature norm; returns the facts on it.

    clip: a clip id, or VIDEO@SECONDS on the frame axis. recompute: decode and run the network again, and compare
    with the stored row; the result has "largest_difference" (in standard deviations) and "differs".
    Raises `UserError`: no such clip, a dataset or weights that cannot be found.
    """
    store = open_store(path)
    row = find_row(store, clip, draw)
    source = dataset_of(store, dataset, data, videos)
    seen = look(store, source, row)
    facts = describe(store, row, seen)
    if recompute:
        facts |= compare(store, row, seen, network_of(store, weights))
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in clip)
    out = Path(out or f"{Path(path).stem}_{stem}.png")
    facts["picture"] = str(out)
    draw_sheet(out, store, row, seen, facts)
    return facts


def dataset_of(
    store: Store, dataset: str | None = None, data: str | Path | None = None, videos: str | Path | None = None
) -> Dataset:
    """The dataset that a store's rows are of, with its media: the one given, or the one that the store names."""
    name = store.manifest.dataset["name"]
    if dataset is None and not store.manifest.dataset.get("family"):
        raise UserError(f"{store.path} is of a CSV of your own: say where it is, --dataset {name}.csv --videos DIR")
    return load_dataset(dataset or name, data_root=data, videos=videos, media=reading_of(store).frames)


def find_row(store: Store, clip: str, draw: int) -> int:
    """The row of a clip id and draw (text axis: k-th caption), or nearest VIDEO@SECONDS on a grid axis.

    Raises `UserError`.
    """
    if store.manifest.dataset.get("axis") in GRID_AXES:
        video, at, seconds = clip.rpartition("@")
        try:
            time_s = float(seconds)
        except ValueError:
            at = ""
        if not at:
            raise UserError(
                f"{store.path} has rows all along its videos: name one VIDEO@SECONDS, {_such_as(store)}, not {clip!r}"
            )
        rows = np.flatnonzero(store.visible & (store.rows["video"] == _video_number(store, video)))
        if not len(rows):
            raise UserError(f"{store.path} has no row of a video {video!r}; name one VIDEO@SECONDS, {_such_as(store)}")
        return int(rows[np.abs(store.rows["start_s"][rows] - time_s).argmin()])
    clips = np.flatnonzero(store.clips["id"] == clip)
    if not len(clips):
        some = ", ".join(map(str, store.clips["id"][:5]))
        raise UserError(f"{store.path} has no clip {clip!r}; its ids look like {some}")
    of_clip = store.rows["clip"] == clips[0]
    column = "k" if store.manifest.dataset.get("axis") == "text" else "draw"
    rows = np.flatnonzero(of_clip & (store.rows[column] == draw))
    if not len(rows):
        there = ", ".join(map(str, sorted(set(store.rows[column][of_clip].tolist()))))
        raise UserError(f"clip {clip!r} has no {column} {draw} in {store.path}; it has {there}")
    return int(rows[0])


def _video_number(store: Store, said: str) -> int:
    """The video of this name, else the one with this path, or this file name; -1 if there is none, or several."""
    paths = [str(path) for path in store.videos["path"]]
    for names in (list(map(str, store.videos["name"])), paths, [Path(path).name for path in paths]):
        if names.count(said) == 1:
            return names.index(said)
    return -1


def _such_as(store: Store) -> str:
    """How a row of a grid is named, by one of this store."""
    rows = np.flatnonzero(store.visible)
    if not len(rows):
        return "of which it has none yet"
    row = rows[len(rows) // 2]
    return f"such as {store.videos['name'][store.rows['video'][row]]}@{store.rows['start_s'][row]:.6g}"


def reading_of(store: Store) -> Reading:
    """How a store's rows were read, from its manifest. Raises `UserError` for features made elsewhere."""
    manifest = store.manifest
    if "sampling" not in manifest.recipe:
        raise UserError(f"{store.path} was imported: what its network saw is not known here")
    flow = manifest.recipe.get("flow")
    return Reading(
        manifest.spec["reads"],
        sampling_from(manifest.recipe["sampling"]),
        Resize(**manifest.spec["resize"]),
        flow_source(flow["method"]) if flow else None,
    )


def look(store: Store, dataset: Dataset, row: int, captions: Mapping[str, list[str]] | None = None) -> Seen:
    """Read the row's input as the extraction did.

    captions: {clip id: its captions in order} of the dataset, from who looks at many rows (`captions_of`).
    """
    reading = reading_of(store)
    name = store.videos["name"][store.rows["video"][row]]
    no_times = np.empty(0)
    if reading.reads == "text":
        captions = captions_of(dataset) if captions is None else captions
        return Seen(next(read_captions(captions, store, np.array([row]))), reading, no_times, 0, 0, False)
    number = {n: i for i, n in enumerate(dataset.videos["name"])}.get(name)
    path = dataset.video_path(number) if number is not None else None
    if path is None:
        raise UserError(f"video {name!r} is not on disk: give --data, or --dataset CSV with --videos")
    rows, known = np.array([row]), store.probe(name)
    times = no_times
    try:
        if reading.reads == "waveform":
            with open_audio(path, round(store.manifest.spec["fps"])) as source:
                return Seen(next(read_video(reading, store, rows, source)), reading, no_times, 0, 0, False)
        times = instants({"start_s": store.rows["start_s"][rows]}, reading.sampling)[0]
        decoder = store.manifest.recipe["decoder"]["family"]
        with open_source(path, decoder=decoder, grid_fps=dataset.grid_fps_of(number), reads=reading.frames) as source:
            read = next(read_video(reading, store, rows, source))
            changed = known is not None and (known["n_frames"], known["width"]) != (source.n_frames, source.width)
            return Seen(read, reading, times, source.width, source.height, changed)
    except VideoError as error:
        return Seen(ReadRow(row, failure=(error.reason, str(error))), reading, times, 0, 0, False)


def describe(store: Store, row: int, seen: Seen) -> dict:
    """Facts of a row: window, labels, status, norms."""
    rows = store.rows
    clip = int(rows["clip"][row])
    status = int(store.status()[row])
    facts = {
        "store": str(store.path),
        "network": store.manifest.spec["name"],
        "video": str(store.videos["name"][rows["video"][row]]),
        "row": row,
        "draw": int(rows["draw"][row]),
        "window_s": [float(rows["start_s"][row]), float(rows["stop_s"][row])],
        "status": STATUS_NAMES[status],
    }
    if len(seen.read.indices):
        facts["frames"] = [int(seen.read.indices[0]), int(seen.read.indices[-1])]
    if isinstance(seen.read.value, str):
        facts["caption"] = seen.read.value
    if clip >= 0:
        facts["clip"] = str(store.clips["id"][clip])
        facts["annotated_s"] = [float(store.clips["start_s"][clip]), float(store.clips["stop_s"][clip])]
        facts |= labels_of(store, clip)
    if seen.changed:
        facts["warning"] = "the video is not the file that this row was computed from: these are other frames"
    if seen.read.failure:
        facts["failure"] = ": ".join(seen.read.failure)
    if status == OK:
        facts["n_padded"] = int(store.read("n_padded", [row])[0])
        for name in ("vector", "spatial", "map", "roi", "tokens"):
            if name in store.manifest.arrays:
                facts[f"norm_{name}"] = float(np.linalg.norm(store.read(name, [row])[0].astype(np.float64)))
        for name in ("n_boxes", "n_text", "n_tokens"):
            if name in store.manifest.arrays:
                facts[name] = int(store.read(name, [row])[0])
        if "text" in store.manifest.arrays:
            facts["words"] = [item["word"] for item in unpack_items(store.read("text", [row])[0])]
    return facts


def labels_of(store: Store, clip: int) -> dict[str, str]:
    """{label: "id name"} of a clip's label columns, with its split."""
    names = store.manifest.dataset.get("class_names", {})
    found = {}
    for column in store.clips:
        value = store.clips[column][clip]
        if column in ("id", "video", "start_s", "stop_s"):
            continue
        listed = names.get(column, [])
        known = isinstance(value, np.integer) and 0 <= value < len(listed)
        found[column] = f"{value} {listed[value]}" if known else str(value)
    return found


def network_of(store: Store, weights: str | None = None):
    """The network that made a store (`network_behind`), ready to run and to give what the store holds."""
    network = network_behind(store, weights)
    precision = store.manifest.recipe["precision"]
    network.keep = tuple(name for name in store.manifest.arrays if name != "n_padded")
    network.to("cpu" if precision != "fp16" else "cuda", precision)
    return network


def compare(store: Store, row: int, seen: Seen, network) -> dict:
    """Run the network (of `network_of`) on what was seen again and compare every float array with the stored one."""
    if store.status()[row] != OK:
        raise UserError(f"row {row} of {store.path} holds no value to compare with")
    if seen.read.value is None:
        raise UserError(f"row {row} of {store.path} cannot be read any more: {seen.read.failure}")
    if seen.changed:
        raise UserError(f"the video of row {row} is not the file that it was computed from: nothing to compare with")
    spec = store.manifest.spec
    batch = {READS[spec["reads"]][3]: [seen.read.value], "sizes": [(seen.width, seen.height)]}
    if spec["kind"] == "roi":
        n = min(int(store.read("n_boxes", [row])[0]), store.manifest.arrays["boxes"].row_shape[0])
        relative = store.read("boxes", [row])[0][:n] / np.array([seen.width, seen.height] * 2, np.float32)
        batch["boxes"] = [relative]
        batch |= {name: [store.read(name, [row])[0][:n]] for name in ("scores", "classes")}
    outputs = {name: values for name, values in network.run(batch).items() if values.dtype.kind == "f"}
    differences = {}
    for name, values in outputs.items():
        stored = store.read(name, [row])[0].astype(np.float64)
        scale = float(stored.std()) or 1.0
        rounding = np.finfo(np.float16).eps * np.abs(stored) if store.manifest.arrays[name].dtype == "float16" else 0
        differences[name] = float(np.maximum(np.abs(values[0] - stored) - rounding, 0).max() / scale)
    largest = max(differences.values())
    tolerance = TOLERANCE[store.manifest.recipe["precision"]]
    return {"differences_in_std": differences, "largest_difference": largest, "differs": not largest <= tolerance}


# ---- the picture -------------------------------------------------------------------------------------------------


def draw_sheet(out: Path, store: Store, row: int, seen: Seen, facts: dict) -> None:
    """Frames in reading order, each under its instant, with the row's boxes; facts above. PNG."""
    from PIL import Image, ImageDraw

    pictures = [Image.fromarray(frame) for frame in frames_to_show(seen)]
    count = len(pictures)
    scale = THUMBNAIL / max(pictures[0].size) if count > 1 else 1.0
    if pictures:
        size = tuple(max(1, round(side * scale)) for side in pictures[0].size)
        pictures = [picture.resize(size, Image.Resampling.BILINEAR) for picture in pictures]
    else:
        size = (THUMBNAIL, THUMBNAIL)
    for picture in pictures:
        draw_boxes(picture, store, row, seen)
    columns = min(COLUMNS, max(1, count))
    lines = sheet_title(facts, width=max(columns * size[0], 640))
    top, caption, margin = 16 * len(lines) + 10, 14, 4
    width = max(640, columns * (size[0] + margin) + margin)
    rows = -(-max(count, 1) // columns)
    sheet = Image.new("RGB", (width, top + rows * (size[1] + caption + margin) + margin), "white")
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        pen.text((margin, 5 + 16 * i), line, fill="black")
    for i, picture in enumerate(pictures):
        x = margin + i % columns * (size[0] + margin)
        y = top + i // columns * (size[1] + caption + margin)
        if len(seen.times):
            number = f"  #{seen.read.indices[i]}" if len(seen.read.indices) == count else ""
            pen.text((x, y), f"{seen.times[i]:.3f} s{number}", fill="black")
        sheet.paste(picture, (x, y + caption))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except (OSError, ValueError) as error:  # ValueError: a file type that Pillow does not know
        raise UserError(f"the picture cannot be written to {out}: {error}; choose another --out") from error


def sheet_title(facts: dict, width: int) -> list[str]:
    """Facts as lines that fit the sheet (6 pixels a letter)."""
    words = []
    for name, value in facts.items():
        if name in ("picture", "differences_in_std"):
            continue
        if isinstance(value, list):
            between = ", " if name == "words" else " to "
            value = between.join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in value)
        words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return textwrap.wrap("   ".join(words), max(40, width // 6 - 4))


def frames_to_show(seen: Seen) -> list[np.ndarray]:
    """uint8 (h, w, 3) pictures of what the network read: its frames, or the course of its waveform."""
    value = seen.read.value
    if value is None or isinstance(value, str):
        return []
    if seen.reading.reads == "waveform":
        return [draw_waveform(value)]
    return [as_rgb(frame) for frame in (value if seen.reading.clips else [value])]


def draw_waveform(samples: np.ndarray, width: int = 640, height: int = 120) -> np.ndarray:
    """Lowest and highest sample of every column of pixels; full scale is [-1, 1]."""
    picture = np.full((height, width, 3), 255, np.uint8)
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    for x, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        part = samples[start : max(stop, start + 1)]
        top, bottom = ((1 - np.clip([part.max(), part.min()], -1, 1)) * (height - 1) / 2).round().astype(int)
        picture[top : bottom + 1, x] = (40, 80, 160)
    return picture


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """A frame for the eye; of flow, u is red and v green."""
    if frame.shape[-1] == 3:
        return frame
    return np.concatenate([frame, np.full((*frame.shape[:2], 1), 128, np.uint8)], axis=-1)


def draw_boxes(picture, store: Store, row: int, seen: Seen) -> None:
    """The boxes of a detector's or RoI network's row, with their scores; those of words that were read, with them."""
    arrays = store.manifest.arrays
    if seen.reading.reads == "waveform" or not {"boxes", "text"} & set(arrays) or store.status()[row] != OK:
        return
    from PIL import ImageDraw

    pen = ImageDraw.Draw(picture)
    if "text" in arrays:
        for item in unpack_items(store.read("text", [row])[0]):
            corners = np.array(item["box"]) * np.array([picture.width, picture.height] * 2)
            pen.rectangle(corners.tolist(), outline="yellow")
            pen.text((corners[0], corners[3] + 1), item["word"], fill="yellow")
        return
    scale = np.array([picture.width / seen.width, picture.height / seen.height] * 2)
    scores = store.read("scores", [row])[0]
    count = min(int(store.read("n_boxes", [row])[0]), len(scores))
    for box, score in zip(store.read("boxes", [row])[0][:count] * scale, scores, strict=False):
        pen.rectangle(box.tolist(), outline="yellow", width=2)
        pen.text((box[0] + 3, box[1] + 2), f"{score:.2f}", fill="yellow")
