"""Annotations in the style of EPIC-KITCHENS, as EPIC-55, EPIC-100 and the toy kitchen have them.

A frame column holds 1-based numbers on a nominal grid (60 a second; EPIC-100 has videos with 50), never frame
numbers of the video file: frame f is the instant (f - 1) / 60 s, and stop frames are exclusive
(epic-kitchens-55-lib iterates range(start, stop)).
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Csv, Problems, integers, numbers, read_csv
from extract.datasets.base import MEDIA, Dataset, Table, dataset_folder, find_media, safe_video_name, strings

__all__ = ["EpicPart", "annotations_folder", "epic_dataset", "find_csv", "read_class_names", "read_video_info"]

GRID_FPS = 60.0


@dataclass(frozen=True)
class EpicPart:
    """One CSV of segments and the split its rows belong to."""

    path: Path
    """Columns `id_column`, video_id, start_frame, stop_frame; with labels also verb_class, noun_class, narration
    and, if there, all_noun_classes (a Python list; else the noun alone). Other columns are ignored."""
    split: str | Callable[[str], str]
    """Name of the split, or a function from the video's name to it."""
    labelled: bool = True
    id_column: str = "uid"


def annotations_folder(data_root: Path | None, name: str, repository: str) -> Path:
    """`<data_root>/<name>/annotations`, where the CSVs of `repository` are.

    Raises:
        UserError: no data root is known, or a folder is not there.
    """
    root = dataset_folder(data_root, name, "annotations/ and videos/, rgb_frames/ or flow_frames/")
    annotations = root / "annotations"
    if not annotations.is_dir():
        raise UserError(f"dataset {name}: looked for {annotations} (the CSVs of {repository}), which is not a folder")
    return annotations


def find_csv(folder: Path, name: str, needed: bool = True) -> Path | None:
    """`folder/name`, or `folder/name.gz`; None if neither is there and it is not needed.

    Raises:
        UserError: neither is there and it is needed.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    if needed:
        raise UserError(f"annotations: looked for {folder / name} (or {name}.gz), which is not there")
    return None


def read_class_names(path: Path) -> list[str]:
    """Names of classes 0..n-1 from a CSV with columns verb_id or noun_id, and class_key; in EPIC-100 id and key.

    Raises:
        UserError: malformed file, or ids that are not exactly 0..n-1.
    """
    table = read_csv(path, [])
    key = "key" if "key" in table.columns else "class_key"
    column = next((name for name in ("verb_id", "noun_id", "class_id", "id") if name in table.columns), None)
    if column is None or key not in table.columns:
        raise UserError(
            f"{path}, line 1: no columns 'verb_id' or 'noun_id' and 'class_key' (or 'id' and 'key') in the header"
        )
    problems = Problems(table.path)
    ids = integers(table, column, problems)
    problems.check()
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.arange(len(ids))):
        raise UserError(f"{path}: column {column} must hold each of 0..{len(ids) - 1} once")
    return [table[key][i] for i in order]


def read_video_info(path: Path) -> dict[str, tuple[float, float]]:
    """{video: (duration in s, frames a second)} of EPIC_video_info.csv (column video; in EPIC-100 video_id)."""
    table = read_csv(path, ["duration", "fps"])
    name = "video_id" if "video_id" in table.columns else "video"
    if name not in table.columns:
        raise UserError(f"{path}, line 1: no column 'video' or 'video_id' in the header")
    problems = Problems(table.path)
    durations, rates = (numbers(table, name, problems) for name in ("duration", "fps"))
    problems.check()
    return {video: (float(d), float(r)) for video, d, r in zip(table[name], durations, rates, strict=True)}


def epic_dataset(
    name: str,
    root: Path,
    parts: Sequence[EpicPart],
    *,
    verb_names: Sequence[str],
    noun_names: Sequence[str],
    media: str = "rgb",
    grid_fps: float | Callable[[str], float] = GRID_FPS,
    video_info: dict[str, tuple[float, float]] | None = None,
    extra_videos: Sequence[str] = (),
    **fields,
) -> Dataset:
    """Build a `Dataset` from EPIC-style segment files.

    Clips are in the order of `parts` and their rows; videos in the order of their names. Labels: verb, noun
    (the first noun), and action = index of the (verb, noun) pair among all pairs that occur in `parts`,
    sorted by verb, then noun (`facts["actions"]`, an int32 array (n_actions, 2)). All distinct nouns of a
    clip are in the `labels` table, narrations in `texts`. Media are searched under `root`
    (`base.find_media`).

    Args:
        name, root: of the dataset.
        parts: segment files.
        verb_names, noun_names: class names in the order of their ids; the lengths bound the ids.
        media: "rgb" or "flow": which folders are searched.
        grid_fps: rate of the annotations' frame columns, or a function from the video's name to it.
        video_info: {video: (duration_s, fps)} as published; kept as columns listed_duration_s, listed_fps.
        extra_videos: videos without segments.
        fields: further fields of `Dataset` (boxes, saoa, facts, ...).

    Raises:
        UserError: malformed rows (file, line, field, value), a uid that occurs twice, a video that is there
            twice, and what `Dataset` raises.
    """
    rate = grid_fps if callable(grid_fps) else lambda video: grid_fps
    tables = [_read_part(part, rate, len(verb_names), len(noun_names)) for part in parts]
    _refuse_repeated_uids(parts, tables)

    def joined(column: str) -> np.ndarray:
        return np.concatenate([table[column] for table, _ in tables])

    listed = video_info or {}
    clip_videos = joined("video")
    video_names = sorted({*clip_videos, *listed, *extra_videos})
    number = {video: i for i, video in enumerate(video_names)}
    path, kind = find_media(root, video_names, media)
    videos = {"name": strings(video_names), "path": path, "kind": kind}
    if listed:
        info = np.array([listed.get(video, (np.nan, np.nan)) for video in video_names])
        videos |= {"listed_duration_s": info[:, 0], "listed_fps": info[:, 1]}

    verb, noun = joined("verb"), joined("noun")
    action, actions = observed_pairs(verb, noun)
    clips = {
        "id": joined("id"),
        "video": np.array([number[video] for video in clip_videos], dtype=np.int32),
        "start_s": joined("start_s"),
        "stop_s": joined("stop_s"),
        "verb": verb,
        "noun": noun,
        "action": action,
        "participant": strings(video.partition("_")[0] for video in clip_videos),
        "split": joined("split"),
    }
    narrations, nouns = joined("narration"), joined("all_nouns")
    told = np.flatnonzero(narrations != "")
    listed_nouns = [(clip, label) for clip, labels in enumerate(nouns) for label in labels]
    searched = [root / folder for folder in MEDIA[media]]
    facts = {"actions": actions, "searched": searched, **fields.pop("facts", {})}
    return Dataset(
        name=name,
        root=root,
        videos=videos,
        clips=clips,
        texts={"clip": told.astype(np.int32), "caption": narrations[told]},
        labels=dict(zip(("clip", "label"), np.array(listed_nouns, dtype=np.int32).reshape(-1, 2).T, strict=True)),
        grid_fps=np.array([rate(video) for video in video_names]) if callable(grid_fps) else grid_fps,
        classes={"verb": len(verb_names), "noun": len(noun_names)},
        class_names={"verb": list(verb_names), "noun": list(noun_names)},
        facts=facts,
        **fields,
    )


def observed_pairs(verb: np.ndarray, noun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Action ids: the index of each (verb, noun) among the distinct pairs sorted by verb, then noun.

    Returns:
        action int32 (n,), -1 where verb or noun is -1; pairs int32 (n_actions, 2).
    """
    action = np.full(len(verb), -1, dtype=np.int32)
    labelled = (verb >= 0) & (noun >= 0)
    pairs, inverse = np.unique(np.stack([verb, noun], 1)[labelled], axis=0, return_inverse=True)
    action[labelled] = inverse.reshape(-1)
    return action, pairs.astype(np.int32).reshape(-1, 2)


def _read_part(part: EpicPart, rate: Callable[[str], float], n_verbs: int, n_nouns: int) -> tuple[Table, Csv]:
    """One segment file as columns of a clips table (video as names, all_nouns as lists)."""
    needed = [part.id_column, "video_id", "start_frame", "stop_frame"]
    needed += ["verb_class", "noun_class", "narration"] if part.labelled else []
    source = read_csv(part.path, needed)
    problems = Problems(source.path)
    n = len(source)
    first, stop = (integers(source, name, problems, minimum=1) for name in ("start_frame", "stop_frame"))
    for i in np.flatnonzero((stop <= first) & (stop > 0) & (first > 0)):
        message = f"not after start_frame {first[i]}; the stop frame is exclusive"
        problems.value(source.lines[i], "stop_frame", str(stop[i]), message)
    for line, uid, video in zip(source.lines, source[part.id_column], source["video_id"], strict=True):
        if not uid:
            problems.value(line, part.id_column, uid, "every segment needs an id")
        if not safe_video_name(video):
            problems.value(line, "video_id", video, "not a video's name")

    verb = noun = np.full(n, -1, dtype=np.int32)
    all_nouns, narration = [()] * n, [""] * n
    if part.labelled:
        verb = integers(source, "verb_class", problems, maximum=n_verbs - 1).astype(np.int32)
        noun = integers(source, "noun_class", problems, maximum=n_nouns - 1).astype(np.int32)
        narration = source["narration"]
        listed = "all_noun_classes" in source.columns
        all_nouns = _noun_lists(source, problems, n_nouns) if listed else [(label,) for label in noun.tolist()]
    problems.check()

    lists = np.empty(n, dtype=object)
    lists[:] = all_nouns
    split = part.split if callable(part.split) else lambda video: part.split
    rates = np.array([rate(video) for video in source["video_id"]])
    table = {
        "id": strings(source[part.id_column]),
        "video": strings(source["video_id"]),
        "start_s": (first - 1) / rates,
        "stop_s": (stop - 1) / rates,
        "verb": verb,
        "noun": noun,
        "all_nouns": lists,
        "narration": strings(narration),
        "split": strings(split(video) for video in source["video_id"]),
    }
    return table, source


def _noun_lists(source: Csv, problems: Problems, n_nouns: int) -> list[tuple[int, ...]]:
    """Column all_noun_classes: Python lists of class ids; repeated ids are dropped, the order kept."""
    lists = []
    for line, text in zip(source.lines, source["all_noun_classes"], strict=True):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if isinstance(value, list) and all(type(label) is int and 0 <= label < n_nouns for label in value):
            lists.append(tuple(dict.fromkeys(value)))
        else:
            lists.append(())
            problems.value(line, "all_noun_classes", text, f"not a list of class ids 0..{n_nouns - 1} such as [3, 8]")
    return lists


def _refuse_repeated_uids(parts: Sequence[EpicPart], tables: Sequence[tuple[Table, Csv]]) -> None:
    first_seen: dict[str, str] = {}
    for part, (table, source) in zip(parts, tables, strict=True):
        problems = Problems(part.path)
        for line, uid in zip(source.lines, table["id"], strict=True):
            place = f"{part.path.name}, line {line}"
            if first_seen.setdefault(uid, place) != place:
                problems.value(line, part.id_column, uid, f"already used by {first_seen[uid]}; clip ids must be unique")
        problems.check()
