"""EGTEA Gaze+ against its published counts, in both layouts, and its files with everything that can be wrong."""

import shutil

import numpy as np
import pytest

from errors import UserError
from extract.datasets import check_dataset, load_dataset, missing_videos, select_split
from extract.networks import network_spec
from extract.sampling import clip_rows, preset_for

REAL = {
    "train_split1.txt": "train_split1.txt",
    "test_split1.txt": "test_split1.txt",
    **{
        f"{part}_split{split}.txt": f"reconstructed_{part}_split{split}.txt"
        for part in ("train", "test")
        for split in (2, 3)
    },
    **{f"{label}_idx.txt": f"reconstructed_{label}_idx.txt" for label in ("action", "verb", "noun")},
}


@pytest.fixture(scope="module")
def egtea_root(shared, tmp_path_factory):
    """A data root with the published split files, a full video and two trimmed clips' stand-ins."""
    root = tmp_path_factory.mktemp("data")
    annotations = root / "egtea/annotations"
    annotations.mkdir(parents=True)
    for name, source in REAL.items():
        shutil.copyfile(shared / "annotations/egtea" / source, annotations / name)
    session = "OP01-R01-PastaSalad"
    for name in (
        f"videos/{session}.mp4",
        f"cropped_clips/{session}/{session}-66680-68130-F001597-F001639.mp4",
        f"cropped_clips/{session}/{session}-106910-112100-F002553-F002703.mp4",
    ):
        (root / "egtea" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "egtea" / name).touch()
    return root


@pytest.fixture(scope="module")
def egtea(egtea_root):
    return load_dataset("egtea", egtea_root)


def test_published_counts(egtea):
    facts = check_dataset(egtea)
    assert facts["rows"] == facts["labelled_rows"] == 10_321
    assert facts["splits"] == {"train": 8_299, "test": 2_022}
    assert facts["classes"] == {"verb": 19, "noun": 53, "action": 106}
    assert facts["observed"] == {"verb": 19, "noun": 51, "action": 106}
    assert (facts["videos"], facts["videos_on_disk"]) == (86, 1)
    assert len(set(egtea.clips["participant"])) == 32
    sizes = {
        f"{split}:{part}": int(select_split(egtea.clips, f"{split}:{part}").sum())
        for split in (1, 2, 3)
        for part in ("train", "test")
    }
    assert sizes == {
        "1:train": 8_299, "1:test": 2_022, "2:train": 8_299, "2:test": 2_022, "3:train": 8_300, "3:test": 2_021
    }  # fmt: skip
    tests = np.stack([select_split(egtea.clips, f"{split}:test") for split in (1, 2, 3)])
    assert tests.sum(axis=0).max() == 1  # no clip is tested in two splits


def test_ids_count_from_zero_and_classes_are_imbalanced_as_published(egtea):
    clips = egtea.clips
    assert (clips["action"].min(), clips["action"].max()) == (0, 105)
    assert (clips["verb"].min(), clips["verb"].max()) == (0, 18)
    assert (clips["noun"].min(), clips["noun"].max()) == (0, 52)
    train, test = (np.bincount(clips["action"][clips["split"] == part]) for part in ("train", "test"))
    assert (train.min(), train.max(), test.min(), test.max()) == (26, 602, 6, 150)
    # action, verb and first noun decide each other: no other pair occurs
    pairs = egtea.facts["actions"]
    assert np.array_equal(pairs[clips["action"]], np.stack([clips["verb"], clips["noun"]], 1))
    assert len(np.unique(pairs, axis=0)) == 106


def test_names_are_split_at_the_last_blank(egtea):
    names = egtea.class_names
    assert names["verb"][4] == "Turn on" and names["verb"][12] == "Divide/Pull Apart"
    assert names["action"][26] == "Spread condiment,bread,eating_utensil" and names["noun"][2] == "eating_utensil"
    assert [len(names[label]) for label in ("verb", "noun", "action")] == [19, 53, 106]


def test_lines_of_four_five_and_six_fields(egtea):
    nouns = np.bincount(egtea.labels["clip"], minlength=len(egtea))
    assert np.bincount(nouns).tolist() == [0, 9_816, 221, 284]
    several = np.unique(egtea.clips["action"][nouns > 1]) + 1
    assert several.tolist() == [19, 27, 67, 72, 79, 85, 87, 96]
    first = {clip: noun for clip, noun in zip(*(egtea.labels[k][::-1] for k in ("clip", "label")), strict=True)}
    assert all(first[clip] == noun for clip, noun in enumerate(egtea.clips["noun"]))
    of_85 = np.flatnonzero(egtea.clips["action"] == 84)
    third = [int(egtea.labels["label"][egtea.labels["clip"] == clip][2]) + 1 for clip in of_85]
    assert sorted(set(third)) == [14, 44] and third.count(14) == 1  # one line of action 85 has another noun


def test_clock_is_24_frames_a_second_and_windows_are_the_trimmed_clips(egtea, egtea_root):
    at = egtea.clips["id"].tolist().index("OP01-R01-PastaSalad-66680-68130-F001597-F001639")
    start, stop = egtea.clips["start_s"], egtea.clips["stop_s"]
    assert (start[at], stop[at]) == (1597 / 24, 1639 / 24) and egtea.grid_fps == 24
    length = np.rint((stop - start) * 24)
    assert (length.min(), length.max()) == (15, 2_801)
    # the milliseconds lie inside, give or take the last frame: they are never what the window is computed from
    told = np.array([clip.split("-")[3:5] for clip in egtea.clips["id"]], dtype=float) / 1000
    slack = 1.2 / 24
    assert (start <= told[:, 0] + slack).all() and (stop >= told[:, 1] - slack).all()
    assert np.max(told[:, 0] - start) * 24 > 233

    cropped = load_dataset("egtea:cropped=true", egtea_root)
    assert cropped.name == "egtea-cropped=true" and cropped.family == "egtea"
    assert len(cropped.videos["name"]) == len(cropped) == 10_321 and len(missing_videos(cropped)) == 10_319
    assert (cropped.clips["start_s"] == 0).all() and np.allclose(cropped.clips["stop_s"], stop - start)
    video = cropped.clips["video"][at]
    assert cropped.videos["path"][video].startswith("cropped_clips/OP01-R01-PastaSalad/OP01-R01-PastaSalad-66680-")
    for name in ("id", "verb", "noun", "action", "split", "split_3"):
        assert np.array_equal(cropped.clips[name], egtea.clips[name])


def test_another_default_split(egtea, egtea_root):
    second = load_dataset("egtea:split=2", egtea_root)
    assert second.name == "egtea-split=2" and np.array_equal(second.clips["split"], egtea.clips["split_2"])
    assert np.array_equal(second.clips["id"], egtea.clips["id"])
    with pytest.raises(UserError, match="no split 4; it has 1, 2, 3"):
        load_dataset("egtea:split=4", egtea_root)


def test_splits_agree_with_rulstm(egtea, shared):
    """The parts of splits 2 and 3 are rulstm's, matched by session, time and action; its ids are ours."""
    told = [clip.split("-") for clip in egtea.clips["id"]]
    ours = [
        ("-".join(t[:3]), verb, action, int(t[3]) * 30 // 1000, int(t[4]) * 30 // 1000)
        for t, verb, action in zip(told, egtea.clips["verb"].tolist(), egtea.clips["action"].tolist(), strict=True)
    ]
    for split in (1, 2, 3):
        for part, name in (("train", "training"), ("test", "validation")):
            lines = (shared / f"annotations/egtea/rulstm/{name}{split}.csv").read_text().split()
            rows = [line.split(",") for line in lines]
            theirs = sorted((row[1], *map(int, (row[4], row[6], row[2], row[3]))) for row in rows)
            chosen = egtea.clips[f"split_{split}"] == part
            mine = sorted(one for one, taken in zip(ours, chosen, strict=True) if taken)
            assert [one[:3] for one in mine] == [one[:3] for one in theirs]
            frames = np.array([one[3:] for one in mine]) - np.array([one[3:] for one in theirs])
            assert np.abs(frames).max() <= 1  # their floor is of floating-point numbers


def test_preset_of_stam(egtea):
    preset = preset_for("egtea", network_spec("i3d_rgb"))
    assert (preset.sampling.frames, preset.sampling.stride, preset.sampling.fps) == (16, 1, 24.0)
    rows = clip_rows(egtea.clips, preset.sampling)
    start, stop = egtea.clips["start_s"][rows["clip"]], egtea.clips["stop_s"][rows["clip"]]
    centre = (rows["start_s"] + rows["stop_s"]) / 2
    assert len(rows["clip"]) == 10_321 and ((centre >= start) & (centre < stop)).all()


LINE = "P01-R01-PastaSalad-1000-2000-F000020-F000052 1 1 1\n"


def write(folder, **lines):
    """Six split files of one training and one test clip, with other content where it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in (1, 2, 3):
        (folder / f"train_split{split}.txt").write_text(LINE)
        (folder / f"test_split{split}.txt").write_text(LINE.replace("P01", "P02"))
    for name, text in lines.items():
        (folder / f"{name}.txt").write_text(text)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"train_split1": LINE.replace(" 1 1 1", " 1 1")}, r"train_split1.txt, line 1: 3 fields"),
        ({"train_split1": LINE.replace(" 1 1 1", " 1 1 1 2 3 4")}, "1 to 3 nouns"),
        ({"train_split1": LINE.replace(" 1 1 1", " 0 1 1")}, "count from 1"),
        ({"train_split1": LINE.replace(" 1 1 1", " 1 20 1")}, r"verb 1\.\.19"),
        ({"train_split1": LINE.replace(" 1 1 1", " 1 x 1")}, "are no ids"),
        ({"train_split1": "P01-R01 1 1 1\n"}, "not a clip's name"),
        ({"train_split1": LINE.replace("F000052", "F000020")}, "stops before it starts"),
        ({"train_split1": LINE + LINE}, "line 2: clip P01-.* is there twice"),
        ({"train_split3": LINE.replace(" 1 1 1", " 1 1 2")}, "train_split3.txt, line 1: .* other labels"),
        ({"test_split2": LINE.replace("P01", "P03")}, "is not in split 1"),
        ({"train_split2": ""}, "split 2 lacks 1 clip of split 1, such as P01"),
        ({"verb_idx": "Turn on 5\n"}, r"verb_idx.txt: must hold a name and each id 1\.\.19 once"),
    ],
)
def test_mistakes_are_told(tmp_path, lines, message):
    write(tmp_path / "egtea/annotations", **lines)
    with pytest.raises(UserError, match=message):
        load_dataset("egtea", tmp_path)


def test_files_that_are_not_there(tmp_path):
    write(tmp_path / "egtea/annotations")
    assert load_dataset("egtea", tmp_path).class_names == {}
    with pytest.raises(UserError, match="no published flow"):
        load_dataset("egtea:cropped=true", tmp_path, media="flow")
    (tmp_path / "egtea/annotations/test_split3.txt").unlink()
    with pytest.raises(UserError, match="no file .*test_split3.txt"):
        load_dataset("egtea", tmp_path)
