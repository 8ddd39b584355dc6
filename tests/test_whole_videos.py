"""ActivityNet, FCVID and Mini-Kinetics: their published files, what is odd in them, and what is refused."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path

import media
import numpy as np
import pytest
import untrimmed
from click.testing import CliRunner

from cli import main
from errors import UserError
from extract.datasets import check_dataset, load_dataset, missing_videos
from extract.networks import network_spec
from extract.sampling import GridSampling, preset_for

LABEL_AND_TABLE = {"label": 200, "labels": 200}


def published(shared: Path, folder: str, name: str, data: Path, *only: str) -> Path:
    """`<data>/<name>/annotations` with the published files of one folder, all or those named; returns `data`."""
    source, place = shared / "annotations" / folder, data / name / "annotations"
    if only:
        for file in only:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, place / file)
    else:
        place.parent.mkdir(parents=True)
        place.symlink_to(source)
    return data


def write(folder: Path, **files: str) -> Path:
    """Write files into annotations/ of one dataset; returns the data root."""
    (folder / "annotations").mkdir(parents=True)
    for name, text in files.items():
        (folder / "annotations" / name).write_text(text)
    return folder.parent


def labels_of(dataset, video: str) -> list[str]:
    clip = dataset.clips["id"].tolist().index(video)
    return [dataset.class_names["labels"][i] for i in dataset.labels["label"][dataset.labels["clip"] == clip]]


# ---- ActivityNet -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def activitynet(shared, tmp_path_factory):
    return load_dataset("activitynet", published(shared, "activitynet", "activitynet", tmp_path_factory.mktemp("a")))


def test_activitynet_has_the_published_counts(activitynet):
    facts = check_dataset(activitynet)
    # 10,024 / 4,926 / 5,044 officially; the files here lack one training video and 193 of the test
    assert facts["splits"] == {"train": 10_023, "val": 4_926, "test": 4_851}
    assert facts["classes"] == LABEL_AND_TABLE and facts["observed"] == {"label": 200}
    assert facts["labelled_rows"] == 14_949 and facts["whole_video_clips"] == facts["videos"] == 19_800
    assert Counter(activitynet.clips["split_arnet"]) == {"train": 10_017, "val": 4_921, "": 4_862}
    assert len(facts["missing"]) == 19_800 and facts["searched"] == [str(activitynet.root / "videos")]


def test_activitynet_has_several_labels_and_events_in_seconds(activitynet):
    assert labels_of(activitynet, "tz3zHV1Z5po") == ["Playing water polo", "Playing polo"]
    several = np.bincount(activitynet.labels["clip"], minlength=len(activitynet))
    assert several.max() == 2 and (several == 2).sum() == 13
    unlabelled = activitynet.clips["split"] == "test"
    assert (several[unlabelled] == 0).all() and (activitynet.clips["label"][unlabelled] == -1).all()
    assert activitynet.class_names["label"] == sorted(activitynet.class_names["label"])
    video = activitynet.videos["name"].tolist().index("QOlSCBRmfWY")
    events = {name: column[activitynet.events["video"] == video] for name, column in activitynet.events.items()}
    assert events["start_s"] == pytest.approx([6.195294851794072]) and events["stop_s"] == pytest.approx([77.73085421])
    assert activitynet.class_names["label"][events["label"][0]] == "Ballet"
    assert (activitynet.events["stop_s"] > activitynet.events["start_s"]).all()
    assert activitynet.facts["segments_without_length"] == 12


def test_numbers_of_classes_are_those_of_names_whatever_file_told_them(shared, tmp_path):
    lists = ["arnet/actnet_train_split.txt", "arnet/actnet_val_split.txt", "arnet/classInd.txt"]
    bmn = ["bmn/anet_anno_action.json.gz", "bmn/video_info_new.csv", "bmn/action_name.csv"]
    one = load_dataset("activitynet", published(shared, "activitynet", "activitynet", tmp_path / "one", *lists))
    two = load_dataset("activitynet", published(shared, "activitynet", "activitynet", tmp_path / "two", *bmn))
    assert one.class_names == two.class_names and one.events is None and "split_arnet" not in two.clips
    assert Counter(one.clips["split"]) == {"train": 10_017, "val": 4_921}
    assert Counter(two.clips["split"]) == {"train": 9_649, "val": 4_728, "test": 4_851}
    a, b = (dict(zip(d.clips["id"], d.clips["label"], strict=True)) for d in (one, two))
    both = set(a) & set(b)
    assert len(both) == 14_366
    # the first label is the first that each file tells: they differ only where there are several
    assert sum(a[name] != b[name] for name in both) <= 13


def test_activitynet_official_json(shared, tmp_path):
    source = shared / "annotations" / "activitynet" / "activity_net.v1-3.reconstructed_sample.json"
    folder = tmp_path / "activitynet" / "annotations"
    folder.mkdir(parents=True)
    with gzip.open(folder / "activity_net.v1-3.min.json.gz", "wb") as file:
        file.write(source.read_bytes())
    dataset = load_dataset("activitynet", tmp_path)
    assert Counter(dataset.clips["split"]) == {"train": 30, "val": 15, "test": 5}
    told = json.loads(source.read_text())["database"]
    assert set(dataset.clips["id"]) == set(told)
    for name in list(told)[:10]:
        labels = list(dict.fromkeys(one["label"] for one in told[name]["annotations"]))
        assert labels_of(dataset, name) == labels


def test_mangled_ids_of_old_lists_are_given_back_or_refused(shared, tmp_path):
    data = published(shared, "activitynet", "activitynet", tmp_path, "bmn/anet_anno_action.json.gz")
    published(shared, "activitynet", "activitynet", tmp_path, "bmn/video_info_new.csv", "arnet/classInd.txt")
    folder = data / "activitynet" / "annotations"
    original = (shared / "annotations" / "activitynet" / "arnet" / "actnet_train_split_org.txt").read_text()
    (folder / "actnet_train_split.txt").write_text(original)
    with pytest.raises(UserError, match="'tnXjdGM9g' is no id of 11 letters: take AR-Net's mended list"):
        load_dataset("activitynet", data)
    known = [line for line in original.splitlines() if len(line.split(",")[0]) == 11 or line.startswith("Vg4a8igc0")]
    (folder / "actnet_train_split.txt").write_text("\n".join(known))
    dataset = load_dataset("activitynet", data)
    assert dict(zip(dataset.clips["id"], dataset.clips["split_arnet"], strict=True))["v_Vg4a8igc0"] == "train"


def test_files_bear_the_id_with_or_without_prefix(tmp_path):
    dataset = load_dataset("activitynet", untrimmed.activitynet(tmp_path))
    assert missing_videos(dataset) == [untrimmed.GONE]
    paths = dict(zip(dataset.videos["name"], dataset.videos["path"], strict=True))
    assert paths["aaaaaaaaaa1"] == "videos/aaaaaaaaaa1.mp4" and paths["bbbbbbbbbb2"] == "videos/v_bbbbbbbbbb2.mp4"
    assert paths["v_dddddddd4"] == "videos/v_v_dddddddd4.mp4"  # an id that begins so, with the prefix
    assert labels_of(dataset, "aaaaaaaaaa1") == ["Archery", "Ballet, classical"]
    assert len(dataset.events["video"]) == 9 and dataset.facts["segments_without_length"] == 2
    shutil.copy(tmp_path / "activitynet/videos/aaaaaaaaaa1.mp4", tmp_path / "activitynet/videos/v_aaaaaaaaaa1.mp4")
    with pytest.raises(UserError, match="'aaaaaaaaaa1' is there twice"):
        load_dataset("activitynet", tmp_path)


def test_an_id_that_begins_like_the_prefix_is_itself(tmp_path):
    text = json.dumps({"database": {n: {"subset": "testing", "annotations": []} for n in ("v_12345678", "12345678")}})
    data = write(tmp_path / "activitynet", **{"activity_net.v1-3.json": text})
    (data / "activitynet" / "videos").mkdir()
    (data / "activitynet" / "videos" / "v_12345678.mp4").write_bytes(b"")
    dataset = load_dataset("activitynet", data)
    assert dict(zip(dataset.videos["name"], dataset.videos["path"], strict=True)) == {
        "12345678": "",
        "v_12345678": "videos/v_12345678.mp4",
    }


def test_wrong_annotations_of_activitynet_are_told(tmp_path):
    video = {"subset": "training", "annotations": [{"segment": [0, 1], "label": "Archery"}]}
    name, lists = "activity_net.v1-3.min.json", {"classInd.txt": "0,Archery\n1,Diving\n"}

    def load(number: int, **files):
        return load_dataset("activitynet", write(tmp_path / str(number) / "activitynet", **files))

    with pytest.raises(UserError, match=r"looked for activity_net.v1-3.min.json, or .* none is there"):
        load(0)
    with pytest.raises(UserError, match="activity_net.v1-3.min.json: not the JSON"):
        load(1, **{name: "{"})
    with pytest.raises(UserError, match="video x: no subset among training, validation, testing"):
        load(2, **{name: json.dumps({"database": {"x": {"subset": "train", "annotations": []}}})})
    with pytest.raises(UserError, match="video x: its annotations are not a list"):
        load(3, **{name: json.dumps({"database": {"x": {**video, "annotations": [{"segment": [1]}]}}})})
    with pytest.raises(UserError, match="video x is labelled 'Archery', which is none of the 1 classes"):
        load(4, **{name: json.dumps({"database": {"x": video}}), "action_name.csv": "action\nDiving\n"})
    with pytest.raises(UserError, match="looked for its classInd.txt"):
        load(5, **{"actnet_train_split.txt": "aaaaaaaaaaa,3,0\n"})
    with pytest.raises(UserError, match="line 2: class 2 of bbbbbbbbbbb, but classInd.txt ends at 1"):
        load(6, **{"actnet_val_split.txt": "aaaaaaaaaaa,3,0\nbbbbbbbbbbb,3,2\n"}, **lists)
    with pytest.raises(UserError, match="is not id,frames,label"):
        load(7, **{"actnet_val_split.txt": "aaaaaaaaaaa 3 0\n"}, **lists)
    with pytest.raises(UserError, match="video aaaaaaaaaaa is in val, another file has it in train"):
        files = {"actnet_train_split.txt": "aaaaaaaaaaa,3,0\n", "actnet_val_split.txt": "aaaaaaaaaaa,3,0\n"}
        load(8, **files, **lists)
    with pytest.raises(UserError, match="the ids must be each of 0..1 once"):
        load(9, **{"actnet_val_split.txt": "aaaaaaaaaaa,3,0\n", "classInd.txt": "0,A\n2,B\n"})
    with pytest.raises(UserError, match="no published flow frames: compute flow"):
        load_dataset("activitynet", tmp_path / "0", media="flow")
    with pytest.raises(UserError, match="looked for .*annotations, which is not a folder"):
        (tmp_path / "none" / "activitynet").mkdir(parents=True)
        load_dataset("activitynet", tmp_path / "none")


# ---- FCVID -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fcvid_files(shared) -> dict[str, str]:
    folder = shared / "annotations" / "fcvid" / "synthetic"
    return {path.name: path.read_text() for path in folder.rglob("*.txt")}


def test_fcvid_is_the_same_from_the_official_files_and_from_ar_nets(fcvid_files, tmp_path):
    official = {name: text for name, text in fcvid_files.items() if name.startswith("FCVID") or name == "classInd.txt"}
    lists = {name: text for name, text in fcvid_files.items() if not name.startswith("FCVID")}
    one = load_dataset("fcvid", write(tmp_path / "one" / "fcvid", **official))
    two = load_dataset("fcvid", write(tmp_path / "two" / "fcvid", **lists))
    for dataset in (one, two):
        facts = check_dataset(dataset)
        assert facts["splits"] == {"train": 10, "val": 10} and facts["classes"] == {"label": 5, "labels": 5}
        assert Counter(dataset.clips["split_official"]) == {"train": 10, "test": 10}
        assert dataset.class_names["label"][1] == "synthetic class 1"
    assert one.clips["id"].tolist() == two.clips["id"].tolist()
    assert one.clips["split"].tolist() == two.clips["split"].tolist()
    assert one.clips["label"].tolist() == two.clips["label"].tolist()
    assert labels_of(two, "class1/vid_1_001") == ["synthetic class 1", "synthetic class 0"]  # only AR-Net's says both


def test_fcvid_without_class_names_and_videos_by_their_folder(fcvid_files, tmp_path):
    files = {name: text for name, text in fcvid_files.items() if name.startswith("FCVID")}
    data = write(tmp_path / "fcvid", **files)
    videos = tmp_path / "fcvid" / "videos" / "deeper"
    for folder in ("class0", "class1"):
        (videos / folder).mkdir(parents=True)
        media.make_video(videos / folder / "vid_0_000.mp4", "libx264", 3)
    dataset = load_dataset("fcvid", data)
    paths = dict(zip(dataset.videos["name"], dataset.videos["path"], strict=True))
    assert paths["class0/vid_0_000"] == "videos/deeper/class0/vid_0_000.mp4" and len(missing_videos(dataset)) == 19
    assert dataset.class_names["label"][:2] == ["class 0", "class 1"]


def test_wrong_annotations_of_fcvid_are_told(tmp_path):
    pair = {"FCVID_VideoName_TrainTestSplit.txt": "a/x.mp4\ttrain\na/y.mp4 test\n", "FCVID_Label.txt": "1 0\n0 1\n"}

    def load(number: int, **changed):
        return load_dataset("fcvid", write(tmp_path / str(number) / "fcvid", **{**pair, **changed}))

    both = load(0, **{"FCVID_Label.txt": "1 1\n0 1\n"})
    assert both.clips["label"].tolist() == [0, 1] and both.labels["label"].tolist() == [0, 1, 1]
    with pytest.raises(UserError, match="neither is complete there"):
        load_dataset("fcvid", write(tmp_path / "none" / "fcvid", **{"FCVID_Label.txt": "1 0\n"}))
    with pytest.raises(UserError, match="lists 2 videos, .* has labels of 1"):
        load(1, **{"FCVID_Label.txt": "1 0\n"})
    with pytest.raises(UserError, match="line 2: 3 fields; 2 times 0 or 1"):
        load(2, **{"FCVID_Label.txt": "1 0\n0 1 0\n"})
    with pytest.raises(UserError, match="line 1: 'a/x.mp4' is not <class>/<name>.mp4 <train|test>"):
        load(3, **{"FCVID_VideoName_TrainTestSplit.txt": "a/x.mp4\na/y.mp4 test\n"})
    with pytest.raises(UserError, match="names 1 classes, .* has 2"):
        load(4, **{"classInd.txt": "0,one\n"})
    with pytest.raises(UserError, match="video name 'a/x' occurs 2 times"):
        load(5, **{"FCVID_VideoName_TrainTestSplit.txt": "a/x.mp4 train\na/x.mp4 test\n"})
    with pytest.raises(UserError, match=r"video '../x' is not a path below"):
        load(6, **{"FCVID_VideoName_TrainTestSplit.txt": "../x.mp4 train\na/x.mp4 test\n"})


# ---- Mini-Kinetics -----------------------------------------------------------------------------------------------


def test_mini_kinetics_has_the_published_validation_set(shared, tmp_path):
    dataset = load_dataset("mini_kinetics", published(shared, "mini-kinetics", "mini_kinetics", tmp_path))
    facts = check_dataset(dataset)
    assert facts["splits"] == {"val": 9_867} and facts["classes"] == {"label": 200}
    assert facts["observed"] == {"label": 200} and dataset.labels is None and dataset.events is None
    assert dataset.class_names["label"][0] == "air drumming" and dataset.class_names["label"][-1] == "yoga"
    number = dataset.clips["id"].tolist().index("7LSJ2Ryv1a8_000000_000010")
    assert dataset.clips["label"][number] == 0 and np.isnan(dataset.clips["stop_s"][number])


def test_mini_kinetics_with_both_lists_and_with_semicolons(tmp_path):
    lines = {
        "mini_train_videofolder.txt": "images/train/air drumming/abcdefghij__000001_000011 300 0",
        "mini_val.txt": "images/val/yoga/-bcdefghi-k_000002_000012;2;1",
        "minik_classInd.txt": "air drumming\nyoga\n",
    }
    data = write(tmp_path / "mini_kinetics", **lines)
    (tmp_path / "mini_kinetics" / "videos" / "yoga").mkdir(parents=True)
    media.make_video(tmp_path / "mini_kinetics/videos/yoga/-bcdefghi-k_000002_000012.mp4", "libx264", 3)
    dataset = load_dataset("mini_kinetics", data)
    assert dict(zip(dataset.clips["id"], dataset.clips["split"], strict=True)) == {
        "abcdefghij__000001_000011": "train",
        "-bcdefghi-k_000002_000012": "val",
    }
    assert missing_videos(dataset) == ["abcdefghij__000001_000011"]
    result = CliRunner().invoke(main, ["datasets", "check", "mini_kinetics", "--data", str(data), "--json"])
    assert result.exit_code == 1 and json.loads(result.stdout)["missing"] == ["abcdefghij__000001_000011"]


def test_wrong_annotations_of_mini_kinetics_are_told(tmp_path):
    classes = {"minik_classInd.txt": "air drumming\nyoga\n"}

    def load(number: int, line: str):
        return load_dataset(
            "mini_kinetics", write(tmp_path / str(number) / "mini_kinetics", **classes, **{"mini_val.txt": line})
        )

    with pytest.raises(UserError, match=r"looked for mini_train_videofolder.txt or .* found .*minik_classInd.txt"):
        load_dataset("mini_kinetics", write(tmp_path / "none" / "mini_kinetics", **classes))
    for number, (line, message) in enumerate([
        ("images/val/yoga/abcdefghijk_000001_000011 60", "is not <folder>/<class>/<clip> <frames> <label>"),
        ("images/val/yoga/abcdefghijk 60 1", "clip 'abcdefghijk' is not <YouTube id>_<start>_<stop>"),
        ("images/val/yoga/abcdefghijk_000001_000011 60 2", "class 2, but there are names of 2"),
        ("images/val/yoga/abcdefghijk_000001_000011 60 0", "class 0 is 'air drumming', its folder 'yoga'"),
    ]):  # fmt: skip
        with pytest.raises(UserError, match=f"line 1: .*{message}"):
            load(number, line)


# ---- how they are sampled ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["shufflenet_v2", "efficientnet_lite0", "tsn_resnet50", "tsn_resnet101", "frames"])
def test_frames_a_second_are_those_of_psn(network):
    spec = network_spec(network)
    for family, fps in (("activitynet", 1.0), ("fcvid", 1.0), ("mini_kinetics", 30.0)):
        preset = preset_for(family, spec)
        assert preset.sampling == GridSampling(fps)
        assert preset.resize["mode"] == "short_side" and preset.resize["size"] == 256
        assert preset_for(family, spec, hop_s=0.5).sampling == GridSampling(2.0)
    assert preset_for("activitynet", network_spec("i3d")).sampling.axis == "clip"
    assert preset_for("", network_spec("shufflenet_v2")).sampling == GridSampling(2.0)
