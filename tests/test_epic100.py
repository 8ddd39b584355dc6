"""EPIC-KITCHENS-100 against its published counts, its two clocks, its subsets, and what can be wrong with its files."""

import json
import warnings

import numpy as np
import pytest

from errors import UserError
from extract.datasets import check_dataset, load_dataset, missing_videos, select_split
from extract.datasets.base import clock_masks
from extract.datasets.epic100 import grid_rate
from extract.networks import network_spec
from extract.sampling import clip_rows, instants, preset_for
from pipelines import Extraction, plan_extraction
from tests.epic100_files import make_epic100, read_rows, rulstm_rows


@pytest.fixture(scope="module")
def source(shared):
    return shared / "annotations/epic-kitchens-100"


@pytest.fixture(scope="module")
def epic_root(source, tmp_path_factory):
    root = make_epic100(tmp_path_factory.mktemp("data"), source)
    for name in ("videos/P01/P01_01.MP4", "rgb_frames/P02/P02_101.tar", "flow_frames/P01/P01_101.tar"):
        (root / "epic100" / name).parent.mkdir(parents=True)
        (root / "epic100" / name).touch()
    return root


@pytest.fixture(scope="module")
def epic(epic_root):
    return load_dataset("epic100", epic_root)


def test_published_counts(epic):
    facts = json.loads(json.dumps(check_dataset(epic)))
    assert facts["rows"] == 89_977 and facts["labelled_rows"] == 76_885
    assert facts["splits"] == {"train": 67_217, "val": 9_668, "test": 13_092}
    assert facts["classes"] == {"verb": 97, "noun": 300}
    assert facts["observed"]["action"] == 3_806 and facts["observed"]["verb"] == 97
    assert (facts["videos"], facts["videos_on_disk"]) == (700, 2)
    per_split = {
        part: len(np.unique(epic.clips["video"][epic.clips["split"] == part])) for part in ("train", "val", "test")
    }
    assert per_split == {"train": 495, "val": 138, "test": 67}
    assert epic.family == epic.name == "epic100"
    assert epic.saoa == {"backbone": "i3d_rgb", "objects": "faster_rcnn_r50_fpn"}


def test_labels(epic):
    clips = epic.clips
    train, val, test = (clips["split"] == part for part in ("train", "val", "test"))
    absent = sorted(set(range(300)) - set(clips["noun"][train].tolist()))
    assert absent == [205, 240, 270, 275, 286, 288, 289, 290, 294, 295, 296]
    new = sorted(set(clips["noun"][val].tolist()) & set(absent))
    assert new == [205, 240, 288, 295]
    assert len(np.unique(clips["verb"][train])) == 97 and len(np.unique(clips["action"][train])) == 3_568
    assert all((clips[name][test] == -1).all() for name in ("verb", "noun", "action"))
    assert (clips["verb"][train | val].max(), clips["noun"][train | val].max()) == (96, 299)
    assert "P01_01_0" in clips["id"] and epic.class_names["noun"][3] != epic.class_names["noun"][8]
    # another taxonomy than EPIC-55's, where "open door" is (2, 8)
    first = clips["id"].tolist().index("P01_01_0")
    assert (clips["verb"][first], clips["noun"][first]) == (3, 3)
    assert epic.class_names["verb"][3] == "open" and epic.class_names["noun"][3] == "cupboard"


def test_subsets_are_the_official_ones(epic, source):
    clips = epic.clips
    in_val = clips["split"] == "val"
    unseen, tail_verb, tail_noun = (select_split(clips, f"{name}:val") for name in ("unseen", "tail_verb", "tail_noun"))
    assert (unseen.sum(), tail_verb.sum(), tail_noun.sum()) == (1_065, 1_760, 1_900)
    assert (tail_verb | tail_noun).sum() == 3_105
    assert set(clips["participant"][unseen]) == {"P18", "P32"}
    assert set(clips["participant"][select_split(clips, "unseen:test")]) == {"P33", "P34", "P36"}
    assert not np.isin(clips["participant"][clips["split"] == "train"], ["P18", "P32", "P33", "P34", "P36"]).any()
    assert not (unseen & ~in_val).any() and (clips["split_unseen"][clips["split"] == "train"] == "other").all()
    for mask, name in (
        (unseen, "unseen_participants"),
        (tail_verb, "tail_verbs"),
        (tail_noun, "tail_nouns"),
        (tail_verb | tail_noun, "tail_actions"),
    ):
        theirs = (source / f"rulstm/validation_{name}_ids.csv").read_text().split()
        assert sorted(clips["id"][mask]) == sorted(theirs)


def test_clock_is_of_the_videos_name():
    assert (grid_rate("P01_01"), grid_rate("P37_103")) == (60.0, 50.0)
    for wrong in ("P01_1", "P01_1001", "V01_01", "P01"):
        with pytest.raises(UserError, match="not named like P01_01 or P01_101"):
            grid_rate(wrong)


def test_windows_agree_with_the_timestamps(epic, source):
    """Frame f is the instant (f - 1) / rate. Were f counted from 0, windows would start a frame late: the instant of a
    frame column is never after its timestamp by more than the rounding of both."""
    number = {clip: i for i, clip in enumerate(epic.clips["id"])}
    kinds = set()
    for name in ("EPIC_100_validation.csv", "EPIC_100_test_timestamps.csv", "EPIC_100_train.partial.csv.gz"):
        rows = read_rows(source / name)
        at = np.array([number[row["narration_id"]] for row in rows])
        rate = np.array([60.0 if len(row["video_id"].partition("_")[2]) == 2 else 50.0 for row in rows])
        kinds |= set(rate)
        for ours, stamp, frame in (
            ("start_s", "start_timestamp", "start_frame"),
            ("stop_s", "stop_timestamp", "stop_frame"),
        ):
            told = np.array([seconds(row[stamp]) for row in rows])
            frames = np.array([int(row[frame]) for row in rows])
            assert frames.min() >= 1  # counted from 1, as the JPEGs are, whatever the official README says
            assert np.array_equal(epic.clips[ours][at], (frames - 1) / rate)
            late = epic.clips[ours][at] - told
            assert late.max() <= 0.0101 and late.min() >= -2.01 / 50 - 0.01
    assert kinds == {50.0, 60.0}


def seconds(stamp: str) -> float:
    hours, minutes, rest = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_clock_of_every_clip(epic):
    """At the real rates every window lies in its video, and every centre's frame inside its own segment."""
    masks = clock_masks(epic)
    official = np.flatnonzero(epic.clips["split"] != "train")  # rebuilt training rows are right to two frames only
    assert not masks["past_end"][official].any() and not masks["centre_outside"].any()
    fifty = np.array([epic.grid_fps_of(video) == 50 for video in epic.clips["video"]])
    assert fifty[official].any() and not fifty[official].all()
    assert set(np.round(epic.videos["listed_fps"], 2)) >= {59.94, 29.97, 50.0}


def test_rulstm_frames_are_at_thirty_a_second(epic, source):
    """Another reading of the same segments agrees: exactly for the videos of EPIC-55, to a frame for the others."""
    official = {row["narration_id"] for row in read_rows(source / "EPIC_100_train.partial.csv.gz")}
    lines = [line.split(",") for line in (source / "rulstm/validation.csv").read_text().split()]
    rows = [(line[0], line[1], *map(int, line[2:6])) for line in lines]
    rows += [row for row in rulstm_rows(source) if row[0] in official]
    number = {clip: i for i, clip in enumerate(epic.clips["id"])}
    at = np.array([number[row[0]] for row in rows])
    assert [epic.videos["name"][video] for video in epic.clips["video"][at]] == [row[1] for row in rows]
    for column, place in (("verb", 4), ("noun", 5)):
        assert epic.clips[column][at].tolist() == [row[place] for row in rows]
    rate = np.array([epic.grid_fps_of(video) for video in epic.clips["video"][at]])
    frame = np.rint(epic.clips["start_s"][at] * rate) + 1
    theirs = np.array([row[2] for row in rows])
    assert np.array_equal(theirs[rate == 60], np.maximum(1, frame[rate == 60] // 2))
    assert np.abs(theirs - frame * 30 / rate)[rate == 50].max() <= 2


def test_missing_narration_timestamps_do_no_harm(epic, source):
    """Nobody knows when these were said; when they happened is in the other columns."""
    missing = {}
    for part, name in (("val", "EPIC_100_validation.csv"), ("train", "EPIC_100_train.partial.csv.gz")):
        missing[part] = [row for row in read_rows(source / name) if not row["narration_timestamp"]]
    assert {part: len(rows) for part, rows in missing.items()} == {"val": 70, "train": 45}
    number = {clip: i for i, clip in enumerate(epic.clips["id"])}
    for part, rows in missing.items():
        at = [number[row["narration_id"]] for row in rows]
        assert (epic.clips["split"][at] == part).all()
        assert epic.videos["name"][epic.clips["video"][at]].tolist() == [row["video_id"] for row in rows]
        rate = np.array([60 if len(row["video_id"].partition("_")[2]) == 2 else 50 for row in rows])
        for ours, which in (("start_s", "start"), ("stop_s", "stop")):
            frames = np.array([int(row[f"{which}_frame"]) for row in rows])
            assert np.array_equal(epic.clips[ours][at], (frames - 1) / rate)
            assert epic.clips[ours][at] == pytest.approx([seconds(row[f"{which}_timestamp"]) for row in rows], abs=0.05)
        for label in ("verb", "noun"):
            assert epic.clips[label][at].tolist() == [int(row[f"{label}_class"]) for row in rows]
    listed = [row["narration_id"] for row in read_rows(source / "EPIC_100_train_missing_timestamp_narrations.csv")]
    assert len(set(listed)) == 117 and {row["narration_id"] for row in missing["train"]} <= set(listed)
    assert (epic.clips["split"][[number[clip] for clip in listed]] == "train").all()


def test_narrations_and_all_nouns(epic, source):
    rows = read_rows(source / "EPIC_100_validation.csv")
    captions = dict(zip(epic.clips["id"][epic.texts["clip"]], epic.texts["caption"], strict=True))
    assert all(captions[row["narration_id"]] == row["narration"].strip() for row in rows)
    pairs = set(zip(epic.labels["clip"].tolist(), epic.labels["label"].tolist(), strict=True))
    labelled = np.flatnonzero(epic.clips["noun"] >= 0)
    assert {(clip, int(epic.clips["noun"][clip])) for clip in labelled} <= pairs and len(pairs) > len(labelled)


def test_rows_put_together_have_the_published_labels(epic, source):
    rows = rulstm_rows(source)
    number = {clip: i for i, clip in enumerate(epic.clips["id"])}
    at = [number[row[0]] for row in rows]
    assert epic.clips["verb"][at].tolist() == [row[4] for row in rows]
    assert epic.clips["noun"][at].tolist() == [row[5] for row in rows]


def test_sampled_centres_lie_inside_their_segments(epic):
    sampling = preset_for("epic100", network_spec("i3d")).sampling
    assert sampling.seconds == pytest.approx(64 * 2 / 60)
    rows = clip_rows(epic.clips, sampling, draws=1)
    times = instants(rows, sampling)[:, sampling.frames // 2]
    start, stop = epic.clips["start_s"][rows["clip"]], epic.clips["stop_s"][rows["clip"]]
    assert len(times) == 89_977 + 67_217 and ((times >= start - 1e-9) & (times < stop)).all()
    assert preset_for("epic100", network_spec("r2plus1d34")).sampling.frames == 32


def test_media(epic, epic_root):
    found = dict(zip(epic.videos["name"], epic.videos["path"], strict=True))
    assert found["P01_01"] == "videos/P01/P01_01.MP4" and found["P02_101"] == "rgb_frames/P02/P02_101.tar"
    flow = load_dataset("epic100", epic_root, media="flow")
    assert len(missing_videos(flow)) == 699 and flow.annotation_hash == epic.annotation_hash
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset("epic100", epic_root)


# ---- made files ------------------------------------------------------------------------------------------

SEGMENT = "{0},{1},,{2},{3},take,0,1,[1]\n"
HEADER = "narration_id,video_id,narration_timestamp,start_frame,stop_frame,narration,verb_class,noun_class,"
HEADER += "all_noun_classes\n"


def make_small(root, train=None, **files):
    """Two segments of each split in videos of both clocks."""
    annotations = root / "epic100/annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    segments = {
        "train": train
        or SEGMENT.format("P01_01_0", "P01_01", 61, 181) + SEGMENT.format("P01_109_0", "P01_109", 51, 151),
        "validation": SEGMENT.format("P18_01_0", "P18_01", 1, 61) + SEGMENT.format("P02_101_0", "P02_101", 1, 51),
    }
    for name, rows in segments.items():
        (annotations / f"EPIC_100_{name}.csv").write_text(HEADER + rows)
    (annotations / "EPIC_100_test_timestamps.csv").write_text(
        "narration_id,video_id,start_frame,stop_frame\nP33_101_0,P33_101,1,51\n"
    )
    (annotations / "EPIC_100_verb_classes.csv").write_text("id,key,instances,category\n0,take,\"['take']\",retrieve")
    (annotations / "EPIC_100_noun_classes.csv").write_text("id,key,instances,category\n0,tap,[],x\n1,spoon,[],x\n")
    for name, text in files.items():
        (annotations / f"EPIC_100_{name}.csv").write_text(text)
    return root


def test_frame_folders_of_both_clocks_are_read_at_their_own_rate(tmp_path):
    """A folder of 200 frames lasts 200 / 60 s in one video and 200 / 50 s in the other, in plan and in extraction."""
    from PIL import Image

    make_small(tmp_path)
    for video in ("P01_01", "P02_101"):
        folder = tmp_path / "epic100/rgb_frames" / video
        folder.mkdir(parents=True)
        for frame in range(1, 201):
            Image.new("RGB", (32, 24), (frame, frame, frame)).save(folder / f"frame_{frame:010d}.jpg", quality=95)
    asked = Extraction(
        dataset="epic100",
        data=tmp_path,
        features=(tmp_path / "features",),
        backbone="frames",
        only=True,
        missing="skip",
    )
    for headers_only in (True, False):
        (job,) = plan_extraction(asked, headers_only=headers_only)
        name = job.dataset.videos["name"].tolist()
        assert job.durations[name.index("P01_01")] == pytest.approx(200 / 60)
        assert job.durations[name.index("P02_101")] == pytest.approx(200 / 50)


def test_wrong_published_frames_are_warned_of(tmp_path):
    make_small(tmp_path)
    (tmp_path / "epic100/rgb_frames/P01_109").mkdir(parents=True)
    with pytest.warns(UserWarning, match="frames first published of P01_109 are wrong"):
        load_dataset("epic100", tmp_path)


def test_lists_of_subsets_may_be_missing(tmp_path):
    clips = load_dataset("epic100", make_small(tmp_path)).clips
    assert not [name for name in clips if name.startswith("split_")]
    make_small(
        tmp_path, unseen_participant_ids_validation="participant_id\nP18\n", tail_nouns="noun\n1\n", tail_verbs="verb\n"
    )
    with pytest.raises(UserError, match="tail_verbs.csv: has a header but no rows"):
        load_dataset("epic100", tmp_path)
    make_small(tmp_path, tail_verbs="verb\n0\n")
    dataset = load_dataset("epic100", tmp_path)
    assert dataset.clips["split_unseen"].tolist() == ["other", "other", "val", "other", "other"]
    assert dataset.clips["split_tail_noun"].tolist() == ["train", "train", "val", "val", "other"]
    make_small(tmp_path, tail_verbs="verb\n7\n")
    with pytest.raises(UserError, match=r"EPIC_100_tail_verbs.csv, line 2: field 'verb' is '7': outside 0\.\.0"):
        load_dataset("epic100", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (SEGMENT.format("P01_01_0", "P01_1", 1, 9), "not named like P01_01"),
        (SEGMENT.format("P01_01_0", "P01_01", 0, 9), "field 'start_frame' is '0'"),
        (SEGMENT.format("P01_01_0", "P01_01", 9, 9), "the stop frame is exclusive"),
        (SEGMENT.format("", "P01_01", 1, 9), "field 'narration_id' is ''"),
        (SEGMENT.format("P18_01_0", "P01_01", 1, 9), "field 'narration_id' is 'P18_01_0': already used"),
        ("P01_01_0,P01_01,,1,9,take,1,1,[1]\n", r"field 'verb_class' is '1': outside 0\.\.0"),
        ("P01_01_0,P01_01,,1,9,take,0,1,bag\n", "not a list of class ids"),
    ],
)
def test_mistakes_are_told(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        load_dataset("epic100", make_small(tmp_path, train=row))


def test_what_is_not_there_is_told(tmp_path):
    (tmp_path / "epic100/annotations").mkdir(parents=True)
    with pytest.raises(UserError, match="EPIC_100_train.csv"):
        load_dataset("epic100", tmp_path)
