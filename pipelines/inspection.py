"""Look at one row: exactly the frames its network saw, its boxes, and whether it computes to the same again."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.datasets import Dataset, load_dataset
from extract.decode import VideoError, open_source
from extract.networks import create_network
from extract.sampling import ClipSampling, GridSampling, instants
from extract.transforms import Resize
from pipelines.frames import DecodedRow, decode_rows
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

    decoded: DecodedRow
    times: np.ndarray  # float64 (T,): the instants asked for
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
    if dataset is None and not store.manifest.dataset.get("family"):
        name = store.manifest.dataset["name"]
        raise UserError(f"{path} is of a CSV of your own: say where it is, --dataset {name}.csv --videos DIR")
    source = load_dataset(
        dataset or store.manifest.dataset["name"],
        data_root=data,
        videos=videos,
        media="flow" if store.manifest.spec["reads"] == "flow" else "rgb",
    )
    seen = look(store, source, row)
    facts = describe(store, row, seen)
    if recompute:
        facts |= compare(store, row, seen, weights)
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in clip)
    out = Path(out or f"{Path(path).stem}_{stem}.png")
    facts["picture"] = str(out)
    draw_sheet(out, store, row, seen, facts)
    return facts


def find_row(store: Store, clip: str, draw: int) -> int:
    """The row of a clip id and draw, or nearest VIDEO@SECONDS on a frame axis. Raises `UserError`."""
    if store.manifest.dataset.get("axis") == "frame":
        video, at, seconds = clip.rpartition("@")
        try:
            time_s = float(seconds)
        except ValueError:
            at = ""
        if not at:
            raise UserError(
                f"{store.path} has one row a frame: name it VIDEO@SECONDS, such as P01_01@12.5, not {clip!r}"
            )
        rows = np.flatnonzero(store.rows["video"] == store.video_index(video))
        if not len(rows):
            raise UserError(f"{store.path} has no rows of video {video!r}")
        return int(rows[np.abs(store.rows["start_s"][rows] - time_s).argmin()])
    clips = np.flatnonzero(store.clips["id"] == clip)
    if not len(clips):
        some = ", ".join(map(str, store.clips["id"][:5]))
        raise UserError(f"{store.path} has no clip {clip!r}; its ids look like {some}")
    of_clip = store.rows["clip"] == clips[0]
    rows = np.flatnonzero(of_clip & (store.rows["draw"] == draw))
    if not len(rows):
        draws = ", ".join(map(str, sorted(set(store.rows["draw"][of_clip].tolist()))))
        raise UserError(f"clip {clip!r} has no draw {draw} in {store.path}; it has {draws}")
    return int(rows[0])


def look(store: Store, dataset: Dataset, row: int) -> Seen:
    """Decode the row's frames as the extraction did."""
    name = store.videos["name"][store.rows["video"][row]]
    number = {n: i for i, n in enumerate(dataset.videos["name"])}.get(name)
    path = dataset.video_path(number) if number is not None else None
    if path is None:
        raise UserError(f"video {name!r} is not on disk: give --data, or --dataset CSV with --videos")
    reads = "flow" if store.manifest.spec["reads"] == "flow" else "rgb"
    times = instants({"start_s": store.rows["start_s"][[row]]}, sampling_of(store))
    decoder = store.manifest.recipe["decoder"]["family"]
    try:
        with open_source(path, decoder=decoder, grid_fps=dataset.grid_fps, reads=reads) as source:
            resize = Resize(**store.manifest.spec["resize"])
            decoded = next(decode_rows(source, np.array([row]), times, resize))
            known = store.probe(name)
            changed = known is not None and (known["n_frames"], known["width"]) != (source.n_frames, source.width)
            return Seen(decoded, times[0], source.width, source.height, changed)
    except VideoError as error:
        failure = (error.reason, str(error))
        return Seen(DecodedRow(row, None, np.empty(0, np.int64), failure=failure), times[0], 0, 0, False)


def sampling_of(store: Store) -> ClipSampling | GridSampling:
    """The sampling that a store's recipe names."""
    recipe = dict(store.manifest.recipe["sampling"])
    return ClipSampling(**recipe) if recipe.pop("axis") == "clip" else GridSampling(**recipe)


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
        "frames": [int(seen.decoded.indices[0]), int(seen.decoded.indices[-1])] if len(seen.decoded.indices) else [],
        "status": STATUS_NAMES[status],
    }
    if clip >= 0:
        facts["clip"] = str(store.clips["id"][clip])
        facts["annotated_s"] = [float(store.clips["start_s"][clip]), float(store.clips["stop_s"][clip])]
        facts |= labels_of(store, clip)
    if seen.changed:
        facts["warning"] = "the video is not the file that this row was computed from: these are other frames"
    if seen.decoded.failure:
        facts["failure"] = ": ".join(seen.decoded.failure)
    if status == OK:
        facts["n_padded"] = int(store.read("n_padded", [row])[0])
        for name in ("vector", "spatial", "map", "roi"):
            if name in store.manifest.arrays:
                facts[f"norm_{name}"] = float(np.linalg.norm(store.read(name, [row])[0].astype(np.float64)))
        if "n_boxes" in store.manifest.arrays:
            facts["n_boxes"] = int(store.read("n_boxes", [row])[0])
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


def compare(store: Store, row: int, seen: Seen, weights: str | None) -> dict:
    """Run the network on the row's frames again and compare every float array with the stored one."""
    if store.status()[row] != OK:
        raise UserError(f"row {row} of {store.path} holds no value to compare with")
    if seen.decoded.frames is None:
        raise UserError(f"row {row} of {store.path} cannot be decoded any more: {seen.decoded.failure}")
    if seen.changed:
        raise UserError(f"the video of row {row} is not the file that it was computed from: nothing to compare with")
    spec = store.manifest.spec
    made = spec["created_with"]
    origin = spec["weights_origin"]
    network = create_network(
        made["name"], weights=weights or (origin if origin.startswith("random:") else None), **made["options"]
    )
    if network.weights_hash != store.manifest.recipe["weights"]:
        raise UserError(
            f"these weights ({network.weights_origin}) are not those of {store.path} ({origin}): give --weights"
        )
    precision = store.manifest.recipe["precision"]
    network.keep = tuple(name for name in store.manifest.arrays if name != "n_padded")
    network.to("cpu" if precision != "fp16" else "cuda", precision)
    frames = seen.decoded.frames if store.manifest.dataset["axis"] == "clip" else seen.decoded.frames[0]
    batch = {"frames": [frames], "sizes": [(seen.width, seen.height)]}
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
    return {"differences_in_std": differences, "largest_difference": largest, "differs": largest > TOLERANCE[precision]}


# ---- the picture -------------------------------------------------------------------------------------------------


def draw_sheet(out: Path, store: Store, row: int, seen: Seen, facts: dict) -> None:
    """Frames in reading order, each under its instant, with the row's boxes; facts above. PNG."""
    from PIL import Image, ImageDraw

    frames = seen.decoded.frames
    count = 0 if frames is None else len(frames)
    pictures = [Image.fromarray(as_rgb(frame)) for frame in frames] if count else []
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
        pen.text((x, y), f"{seen.times[i]:.3f} s  #{seen.decoded.indices[i]}", fill="black")
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
            value = " to ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in value)
        words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return textwrap.wrap("   ".join(words), max(40, width // 6 - 4))


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """A frame for the eye; of flow, u is red and v green."""
    if frame.shape[-1] == 3:
        return frame
    return np.concatenate([frame, np.full((*frame.shape[:2], 1), 128, np.uint8)], axis=-1)


def draw_boxes(picture, store: Store, row: int, seen: Seen) -> None:
    """The boxes of a detector's or RoI network's row, with their scores."""
    if "boxes" not in store.manifest.arrays or store.status()[row] != OK:
        return
    from PIL import ImageDraw

    pen = ImageDraw.Draw(picture)
    scale = np.array([picture.width / seen.width, picture.height / seen.height] * 2)
    scores = store.read("scores", [row])[0]
    count = min(int(store.read("n_boxes", [row])[0]), len(scores))
    for box, score in zip(store.read("boxes", [row])[0][:count] * scale, scores, strict=False):
        pen.rectangle(box.tolist(), outline="yellow", width=2)
        pen.text((box[0] + 3, box[1] + 2), f"{score:.2f}", fill="yellow")
