"""EPIC-KITCHENS-55 against its published counts, its clock, its classes and the quirks of its files."""

import ast
import gzip
import json
import math
import shutil
import time
from decimal import Decimal

import numpy as np
import pytest

from errors import UserError
from extract.datasets import check_dataset, load_dataset, missing_videos, select_split
from extract.datasets.base import clock_masks
from extract.datasets.epic_csv import observed_pairs
from extract.networks import network_spec
from extract.sampling import clip_rows, instants, preset_for
from tests.epic100_files import read_rows

TRAIN, INVALID = "EPIC_train_action_labels.csv", "EPIC_train_invalid_labels.csv"
TESTS = {"test_s1": "EPIC_test_s1_timestamps.csv", "test_s2": "EPIC_test_s2_timestamps.csv"}


@pytest.fixture(scope="module")
def source(shared):
    return shared / "annotations/epic-kitchens-55"


@pytest.fixture(scope="module")
def segments(source):
    """{uid: row} of all that are clips."""
    return {row["uid"]: row for name in (TRAIN, *TESTS.values()) for row in read_rows(source / name)}


@pytest.fixture(scope="module")
def epic_root(shared, tmp_path_factory):
    """A data root with the real CSVs and three stand-ins for videos."""
    root = tmp_path_factory.mktemp("data")
    (root / "epic55").mkdir()
    (root / "epic55/annotations").symlink_to(shared / "annotations/epic-kitchens-55")
    for name in ("videos/train/P01/P01_01.MP4", "videos/test/P01/P01_11.MP4", "flow_frames/P26/P26_01.tar"):
        path = root / "epic55" / name
        path.parent.mkdir(parents=True)
        path.touch()
    return root


@pytest.fixture(scope="module")
def epic(epic_root):
    return load_dataset("epic55", epic_root)


def test_epic_counts(epic):
    result = json.loads(json.dumps(check_dataset(epic)))
    assert result["rows"] == 39_448 and result["labelled_rows"] == 28_472
    assert result["splits"] == {"train": 23_191, "val": 5_281, "test_s1": 8_047, "test_s2": 2_929}
    assert result["classes"] == {"verb": 125, "noun": 352}
    assert result["observed"] == {"verb": 119, "noun": 321, "action": 2_513}
    assert (result["videos"], result["videos_on_disk"], len(result["missing"])) == (432, 2, 430)
    assert result["captions"] == 28_472
    assert (result["past_end"], result["centre_past_end"], result["centre_outside"]) == (0, 0, 0)
    assert epic.family == epic.name == "epic55" and epic.grid_fps == 60.0
    assert [len(epic.facts[f"many_shot_{kind}"]) for kind in ("verbs", "nouns", "actions")] == [26, 71, 819]
    assert epic.saoa == {"backbone": "i3d_rgb", "objects": "faster_rcnn_r50_fpn"}


def test_epic_first_clip_and_labels(epic):
    clips = epic.clips
    first = {name: column[0] for name, column in clips.items()}
    assert (first["id"], first["verb"], first["noun"], first["split"]) == ("0", 2, 8, "train")
    assert (first["start_s"], first["stop_s"]) == (7 / 60, 201 / 60)  # frames 8..202, 1-based, stop exclusive
    assert epic.class_names["verb"][2] == "open" and epic.class_names["noun"][8] == "cupboard"
    assert epic.texts["caption"][0] == "open door" and epic.texts["clip"][0] == 0
    assert epic.facts["actions"][first["action"]].tolist() == [2, 8]
    assert epic.videos["name"][first["video"]] == "P01_01"
    for name in ("video", "verb", "noun", "action"):
        assert clips[name].dtype == np.int32
    test = np.char.startswith(clips["split"].astype(str), "test")
    assert (clips["verb"][test] == -1).all() and (clips["action"][test] == -1).all()
    # the first noun of every clip is among all its nouns, and none is there twice
    pairs = set(zip(epic.labels["clip"].tolist(), epic.labels["label"].tolist(), strict=True))
    assert len(pairs) == len(epic.labels["clip"]) and {(i, n) for i, n in enumerate(clips["noun"]) if n >= 0} <= pairs


def test_epic_action_order_is_verb_then_noun(epic):
    pairs = epic.facts["actions"]
    assert pairs.shape == (2_513, 2) and (np.diff(pairs[:, 0] * 352 + pairs[:, 1]) > 0).all()
    labelled = epic.clips["action"] >= 0
    assert np.array_equal(pairs[epic.clips["action"][labelled], 0], epic.clips["verb"][labelled])
    action, pairs = observed_pairs(np.array([1, -1, 0, 1]), np.array([2, 2, 5, 2]))
    assert action.tolist() == [1, -1, 0, 1] and pairs.tolist() == [[0, 5], [1, 2]]


def test_epic_split_is_the_papers(epic, shared):
    lists = shared / "annotations/epic-kitchens-55/splits_baradel_lfb"
    for part in ("train", "val"):
        uids = (lists / f"{part}_uids.txt").read_text().split()
        assert sorted(epic.clips["id"][select_split(epic.clips, part)]) == sorted(uids)


def test_epic_clock(epic):
    """At the real rates every centre falls inside its own segment; as native frame numbers they would not."""
    masks, labelled = clock_masks(epic), epic.clips["verb"] >= 0
    assert not masks["centre_outside"].any() and not masks["past_end"].any()
    assert masks["native_centre_outside"][labelled].mean() == pytest.approx(0.237, abs=0.0005)
    assert masks["native_past_end"][labelled].sum() == 281


def test_epic_sampled_centres_at_real_rates(epic):
    """The same for the rows that are sampled, every draw of them, through the decoder's rule."""
    sampling = preset_for("epic55", network_spec("i3d")).sampling
    begun = time.perf_counter()
    rows = clip_rows(epic.clips, sampling, draws=4)
    times = instants(rows, sampling)[:, sampling.frames // 2]
    assert time.perf_counter() - begun < 5
    assert len(times) == 39_448 + 4 * 23_191
    rate = epic.videos["listed_fps"][rows["video"]]
    shown = np.floor((times + 0.0005) * rate) / rate
    start, stop = epic.clips["start_s"][rows["clip"]], epic.clips["stop_s"][rows["clip"]]
    assert ((times >= start) & (times < stop)).all()
    # a random centre on a segment's first instant may show the frame that began just before it
    assert ((shown >= start - 1 / rate - 1e-9) & (shown < stop)).all()
    centre = rows["draw"] == 0
    assert ((shown >= start) & (shown < stop))[centre].all()


def test_epic_flow(epic_root):
    dataset = load_dataset("epic55", epic_root, media="flow")
    assert dataset.grid_fps == 60.0 and len(missing_videos(dataset)) == 431
    found = dataset.videos["name"] == "P26_01"
    assert dataset.videos["path"][found] == "flow_frames/P26/P26_01.tar" and dataset.videos["kind"][found] == "tar"
    assert dataset.annotation_hash == load_dataset("epic55", epic_root).annotation_hash


def test_epic_annotations_may_be_gzipped(epic, epic_root, shared, tmp_path):
    target = tmp_path / "epic55/annotations"
    shutil.copytree(shared / "annotations/epic-kitchens-55", target, copy_function=shutil.copyfile)
    for path in target.glob("EPIC_t*.csv"):
        (target / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    (target / "EPIC_video_info.csv").unlink()
    dataset = load_dataset("epic55", tmp_path)
    assert len(dataset) == 39_448 and "listed_fps" not in dataset.videos
    assert "past_end" not in check_dataset(dataset)
    assert np.array_equal(dataset.clips["start_s"], epic.clips["start_s"])


# ---- what its README warns of ----------------------------------------------------------------------------


def test_ids_are_all_but_the_invalid_ones(epic, source):
    """uid 0..39563 without a gap over train, S1, S2 and the 116 segments whose verb is in no class."""
    invalid = read_rows(source / INVALID)
    assert len(invalid) == 116 and {row["verb_class"] for row in invalid} == {""}
    clips = [int(clip) for clip in epic.clips["id"]]
    left_out = [int(row["uid"]) for row in invalid]
    assert sorted(clips + left_out) == list(range(39_564)) and len(clips) == 39_448
    for part, name in TESTS.items():
        uids = [row["uid"] for row in read_rows(source / name)]
        assert epic.clips["id"][epic.clips["split"] == part].tolist() == uids


def test_invalid_rows_among_the_labels_are_refused(source, tmp_path):
    """Both files put together, as their equal columns invite to: every such row is told, none becomes a clip."""
    target = tmp_path / "epic55/annotations"
    target.mkdir(parents=True)
    for path in source.glob("EPIC_*.csv"):
        (target / path.name).symlink_to(path)
    (target / TRAIN).unlink()
    invalid = (source / INVALID).read_text().partition("\n")[2]
    (target / TRAIN).write_text((source / TRAIN).read_text() + invalid)
    with pytest.raises(UserError, match="line 28474: field 'verb_class' is '': not an integer") as caught:
        load_dataset("epic55", tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and "line 28483: field 'verb_class'" in lines[9] and "106 more" in lines[10]


def seconds(stamp: str) -> Decimal:
    """Exactly: as a float, 17 * 60 + 13.60 times 60 is below 62016."""
    hours, minutes, rest = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + Decimal(rest)


def test_times_are_the_frame_columns_and_not_the_timestamps(epic, segments):
    """Frame f is the instant (f - 1) / 60. The timestamps, floor(60 t) or 1, say the same or, through the rounding of
    whoever wrote the columns, one frame more: of 119 training starts among others."""
    later = {"start": {}, "stop": {}}
    for ours, which in (("start_s", "start"), ("stop_s", "stop")):
        frames = np.array([int(segments[clip][f"{which}_frame"]) for clip in epic.clips["id"]])
        assert np.array_equal(epic.clips[ours], (frames - 1) / 60) and frames.min() >= 1
        told = [seconds(segments[clip][f"{which}_timestamp"]) for clip in epic.clips["id"]]
        more = np.array([max(1, math.floor(60 * t)) for t in told]) - frames
        assert set(more) == {0, 1} and (more == 0).mean() == pytest.approx(0.996, abs=0.0005)
        late = epic.clips[ours] - np.array(told, float)
        assert late.max() <= 0 and late.min() > -2 / 60 - 1e-6
        later[which] = {part: int(more[epic.clips["split"] == part].sum()) for part in set(epic.clips["split"])}
    assert {which: of["train"] + of["val"] for which, of in later.items()} == {"start": 119, "stop": 118}
    length = np.rint((epic.clips["stop_s"] - epic.clips["start_s"]) * 60)
    assert (length.min(), length.max(), np.median(length)) == (30, 207 * 60, 117)


def test_rulstm_says_the_same_at_thirty_frames_a_second(epic, source):
    """Their frame is max(1, frame // 2), exactly, for all 39,448; their labels, videos and actions are ours."""
    number = {clip: i for i, clip in enumerate(epic.clips["id"])}
    names = ("training", "validation", "test_seen", "test_unseen")
    lists = {name: (source / f"rulstm/{name}.csv").read_text().splitlines() for name in names}
    assert [len(lines) for lines in lists.values()] == [23_493, 4_979, 8_047, 2_929]
    rows = [[field.strip() for field in line.split(",")] for lines in lists.values() for line in lines]
    at = np.array([number[str(int(row[0]))] for row in rows])
    assert len(set(at)) == len(epic)
    assert epic.videos["name"][epic.clips["video"][at]].tolist() == [row[1] for row in rows]
    for ours, place in (("start_s", 2), ("stop_s", 3)):
        frame = np.rint(epic.clips[ours][at] * 60).astype(int) + 1
        assert np.maximum(1, frame // 2).tolist() == [int(row[place]) for row in rows]
    # their numbers of actions are another order of the same pairs
    pairs = {int(row["id"]): (int(row["verb"]), int(row["noun"])) for row in read_rows(source / "rulstm/actions.csv")}
    assert sorted(pairs.values()) == [tuple(pair) for pair in epic.facts["actions"].tolist()]
    labelled = [(i, row) for i, row in zip(at, rows, strict=True) if len(row) > 4]
    assert len(labelled) == 28_472
    for i, row in labelled:
        label = (int(epic.clips["verb"][i]), int(epic.clips["noun"][i]))
        assert label == (int(row[4]), int(row[5])) == pairs[int(row[6])]


def test_classes_that_never_occur_have_outputs_all_the_same(epic):
    labelled = epic.clips["verb"] >= 0
    verb, noun = epic.clips["verb"][labelled], epic.clips["noun"][labelled]
    assert sorted({*range(125)} - {*verb.tolist()}) == [94, 106, 108, 110, 118, 123]
    assert sorted({*range(352)} - {*noun.tolist()}) == [
        0, 34, 115, 149, 157, 200, 220, 221, 225, 233, 235, 241, 247, 258, 262, 266, 271, 280, 282, 290, 293, 296,
        299, 303, 305, 316, 317, 321, 330, 337, 346,
    ]  # fmt: skip
    assert epic.classes == {"verb": 125, "noun": 352} and len(np.unique(epic.labels["label"])) == 325
    assert (len(epic.class_names["verb"]), len(epic.class_names["noun"])) == (125, 352)
    assert epic.class_names["noun"][0] == "Nothing"


def test_validation_has_classes_that_its_training_never_shows(epic):
    train, val = (epic.clips["split"] == part for part in ("train", "val"))
    unseen = [len(np.setdiff1d(epic.clips[k][val], epic.clips[k][train])) for k in ("verb", "noun", "action")]
    assert unseen == [6, 21, 247]
    assert [len(np.unique(epic.clips["video"][mask])) for mask in (train, val)] == [200, 72]


def test_participants_of_the_splits(epic):
    of = {part: {*epic.clips["participant"][epic.clips["split"] == part]} for part in ("train", "val", "test_s2")}
    everybody = {f"P{i:02d}" for i in range(1, 32)} - {"P09", "P11", "P18"}
    assert of["train"] == {who for who in everybody if who <= "P25"} and of["val"] == everybody - of["train"]
    assert of["test_s2"] == {"P09", "P11", "P18", "P32"}
    seen = {*epic.clips["participant"][epic.clips["split"] == "test_s1"]}
    assert seen <= everybody


def test_all_nouns_of_every_segment_once(epic, segments):
    """Column all_noun_classes is the text of a list, with repetitions; the first is noun_class."""
    expected, lengths = [], []
    for number, clip in enumerate(epic.clips["id"]):
        listed = ast.literal_eval(segments[clip].get("all_noun_classes", "[]"))
        assert listed[:1] == ([int(segments[clip]["noun_class"])] if listed else [])
        expected += [(number, noun) for noun in sorted(set(listed))]
        lengths.append(len(set(listed)))
    found = zip(epic.labels["clip"].tolist(), epic.labels["label"].tolist(), strict=True)
    assert sorted(found) == expected
    assert np.bincount(lengths)[1:].tolist() == [24_319, 3_881, 251, 19, 2]


def test_captions_are_the_narrations(epic, segments):
    narrations = [segments[clip]["narration"] for clip in epic.clips["id"][epic.texts["clip"]]]
    assert epic.texts["caption"].tolist() == narrations


def test_rates_of_the_videos_are_listed_and_are_not_the_clock(epic):
    rate = dict(zip(epic.videos["name"], np.round(epic.videos["listed_fps"], 2), strict=True))
    other = dict.fromkeys(("P09_07", "P09_08", "P10_04", "P18_02"), 29.97) | {"P18_09": 90.0}
    other |= {f"P17_0{i}": 47.95 for i in range(1, 5)}
    assert {name: fps for name, fps in rate.items() if fps != 59.94} == other and len(rate) == 432
    assert {epic.grid_fps_of(video) for video in range(432)} == {60.0}


def test_many_shot_classes_are_the_published_ones(epic, source):
    for kind in ("verb", "noun"):
        published = [int(row[f"{kind}_class"]) for row in read_rows(source / f"EPIC_many_shot_{kind}s.csv")]
        assert epic.facts[f"many_shot_{kind}s"].tolist() == published
    rows = read_rows(source / "EPIC_many_shot_actions.csv")
    published = [[int(row["verb_class"]), int(row["noun_class"])] for row in rows]
    assert epic.facts["many_shot_actions"].tolist() == published and [12, 78] in published  # text "(12, 78)"
