"""MSR-VTT, ActivityNet Captions and LSMDC from their real files, and what can be wrong with them."""

import gzip
import json
import shutil

import numpy as np
import pytest

from errors import UserError
from extract.datasets import check_dataset, list_datasets, load_dataset
from extract.datasets.captioned import one_line
from extract.sampling import text_rows
from stores import ArraySpec, Manifest, create_store, open_store, plan_layout

LSMDC = ("LSMDC16_annos_training", "LSMDC16_annos_val", "LSMDC16_challenge_1000_publictect")


@pytest.fixture
def place(shared, tmp_path):
    """name, {our file: theirs} -> a data root with these annotations."""

    def put(name, files):
        folder = tmp_path / name / "annotations"
        folder.mkdir(parents=True, exist_ok=True)
        for ours, theirs in files.items():
            shutil.copy(shared / "annotations" / theirs, folder / ours)
        return tmp_path

    return put


def captions_of(dataset, video, column=None, part=None):
    clip = list(dataset.clips["id"]).index(video)
    mine = dataset.texts["clip"] == clip
    if column is not None:
        mine &= dataset.texts[column] == part
    return dataset.texts["caption"][mine].tolist()


def counts(column):
    return dict(zip(*(x.tolist() for x in np.unique(column.astype(str), return_counts=True)), strict=True))


def test_they_are_registered():
    assert {"msrvtt", "activitynet_captions", "lsmdc"} <= set(list_datasets())


# --- MSR-VTT ---

MSRVTT = {
    "videodatainfo_2017.json.gz": "msrvtt/videodatainfo_2017.videos_only.json.gz",
    "MSRVTT_JSFUSION_test.csv": "msrvtt/MSRVTT_JSFUSION_test.csv",
    "train_list_miech.txt": "msrvtt/train_list_miech.txt",
    "test_list_miech.txt": "msrvtt/test_list_miech.txt",
}


def test_msrvtt_splits_are_the_published_lists(shared, place):
    dataset = load_dataset("msrvtt", place("msrvtt", MSRVTT))
    clips, folder = dataset.clips, shared / "annotations" / "msrvtt"
    assert len(dataset) == 10_000 and np.isnan(clips["stop_s"]).all() and not clips["start_s"].any()
    assert counts(clips["split"]) == {"train": 6513, "val": 497, "test": 2990}
    assert counts(clips["split_1ka"]) == {"train": 9000, "test": 1000}
    assert counts(clips["split_1ka_7k"]) == {"": 1990, "train": 7010, "test": 1000}
    assert counts(clips["split_1kb"]) == {"": 2344, "train": 6656, "test": 1000}
    lists = {
        ("split", "train"): "train_list_full.txt",
        ("split", "val"): "val_list_full.txt",
        ("split", "test"): "test_list_full.txt",
        ("split_1ka", "train"): "train_list_jsfusion.txt",
        ("split_1ka", "test"): "val_list_jsfusion.txt",
        ("split_1ka_7k", "train"): "MSRVTT_train.7k.csv",
        ("split_1kb", "test"): "test_list_miech.txt",
    }
    for (column, part), name in lists.items():
        listed = set((folder / name).read_text().split()) - {"video_id"}
        assert set(clips["id"][clips[column] == part]) == listed, name
    category = clips["category"][list(clips["id"]).index("video0")]
    assert dataset.class_names["category"][category] == "vehicles/autos" and dataset.classes == {"category": 20}


def test_msrvtt_1ka_is_told_by_its_one_sentence(place):
    """English sentences are not among the reference files: the CSV's are the only ones."""
    dataset = load_dataset("msrvtt", place("msrvtt", MSRVTT))
    texts = dataset.texts
    assert counts(texts["split_1ka"]) == {"test": 1000} and counts(texts["split"]) == {"": 1000}
    assert captions_of(dataset, "video9770") == ["a person is connecting something to system"]
    assert len(set(texts["caption"])) == 995
    assert len(dataset.facts["without_caption"]) == 10_000


def test_msrvtt_sentences_of_mixed_videos(shared, place, tmp_path):
    root = place("msrvtt", {"videodatainfo_2017.json": "msrvtt/videodatainfo_2017_it.sample.json"})
    theirs = json.loads((shared / "annotations/msrvtt/videodatainfo_2017_it.sample.json").read_text())
    order = {}
    for sentence in theirs["sentences"]:
        order.setdefault(sentence["video_id"], []).append(one_line(sentence["caption"]))
    tests = [name for name in order if int(name[5:]) >= 7010]
    second = next(name for name in tests if name != "video7010")
    (root / "msrvtt/annotations/MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\n"
        f'ret0,msr7010,video7010,"{order["video7010"][3]}"\nret1,x,{second},said by nobody\n'
    )
    trained = [name for name in order if name not in ("video7010", second)]
    (root / "msrvtt/annotations/test_list_miech.txt").write_text(f"{second}\nvideo7010")  # no newline at the end
    (root / "msrvtt/annotations/train_list_miech.txt").write_text("\n".join(trained[:3]))
    dataset = load_dataset("msrvtt", root)
    assert len(dataset) == 14 and len(dataset.texts["clip"]) == 281
    for name, captions in order.items():
        assert len(captions) == 20 and captions_of(dataset, name)[:20] == captions
    assert captions_of(dataset, "video7010", "split_1ka", "test") == [order["video7010"][3]]
    assert captions_of(dataset, second, "split_1ka", "test") == ["said by nobody"]
    assert captions_of(dataset, second, "split", "test") == order[second]
    assert captions_of(dataset, second, "split_1kb", "test") == order[second][:1]
    assert len(captions_of(dataset, trained[0], "split_1ka", "train")) == 20
    assert len(captions_of(dataset, trained[5], "split_1kb", "")) == 20
    rows = text_rows(dataset.clips, dataset.texts)
    assert np.bincount(rows["clip"]).tolist() == [21 if v == second else 20 for v in dataset.clips["id"]]


def test_msrvtt_as_two_files_and_as_sentences_alone(shared, place):
    theirs = json.loads((shared / "annotations/msrvtt/videodatainfo_2017_it.sample.json").read_text())
    root = place("msrvtt", {})
    folder = root / "msrvtt/annotations"
    for name, chosen in (("train_val", lambda n: n < 7010), ("test", lambda n: n >= 7010)):
        part = {
            "videos": [
                v | {"split": v["split"].replace("val", "validate")} for v in theirs["videos"] if chosen(v["id"])
            ],
            "sentences": [s for s in theirs["sentences"] if chosen(int(s["video_id"][5:]))],
        }
        (folder / f"{name}_videodatainfo.json").write_text(json.dumps(part))
    two = load_dataset("msrvtt", root)
    assert two.texts["caption"].shape == (280,) and counts(two.clips["split"])["val"] == 2
    for path in folder.iterdir():
        path.unlink()
    annotations = [{"image_id": s["video_id"], "caption": s["caption"]} for s in theirs["sentences"]]
    (folder / "MSR_VTT.json").write_text(json.dumps({"annotations": annotations}))
    alone = load_dataset("msrvtt", root)
    assert alone.texts["caption"].tolist() == two.texts["caption"].tolist() and "category" not in alone.clips
    assert alone.clips["split"].tolist() == two.clips["split"].tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["videos"][0].update(split="test"), "in the official train"),
        (lambda d: d["videos"][0].update(video_id="../x"), "none of video0"),
        (lambda d: d["videos"][0].update(category=20), "category 20"),
        (lambda d: d["sentences"][0].update(video_id="video9"), "is of video 'video9', which is none"),
        (lambda d: d["sentences"][0].pop("caption"), "which is none of its videos"),
        (lambda d: d.pop("videos"), "not the JSON"),
    ],
)
def test_msrvtt_malformed(shared, place, change, says):
    theirs = json.loads((shared / "annotations/msrvtt/videodatainfo_2017_it.sample.json").read_text())
    change(theirs)
    root = place("msrvtt", {})
    (root / "msrvtt/annotations/MSRVTT_data.json").write_text(json.dumps(theirs))
    with pytest.raises(UserError, match=says):
        load_dataset("msrvtt", root)


def test_msrvtt_lists_that_do_not_fit(place):
    root = place("msrvtt", {"videodatainfo_2017.json": "msrvtt/videodatainfo_2017_it.sample.json", **{
        name: theirs for name, theirs in MSRVTT.items() if "miech" in name
    }})  # fmt: skip
    with pytest.raises(UserError, match=r"train_list_miech.txt, line 1: .*no video of the annotations"):
        load_dataset("msrvtt", root)
    root = place("msrvtt", {"MSRVTT_JSFUSION_test.csv": MSRVTT["MSRVTT_JSFUSION_test.csv"]})
    (root / "msrvtt/annotations/train_list_miech.txt").unlink()
    with pytest.raises(UserError, match="MSRVTT_JSFUSION_test.csv"):
        load_dataset("msrvtt", root)


def test_captions_parts_are_kept_by_stores(place, tmp_path):
    root = place("msrvtt", {"videodatainfo_2017.json": "msrvtt/videodatainfo_2017_it.sample.json"})
    (root / "msrvtt/annotations/MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence\nvideo7010,of 1k-A alone\n")
    dataset = load_dataset("msrvtt", root)
    arrays = {"vector": ArraySpec((2,), "float32")}
    rows = text_rows(dataset.clips, dataset.texts)
    manifest = Manifest(arrays, plan_layout(arrays, 64, batch_size=4), {"network": {"name": "t"}})
    create_store(tmp_path / "t.zarr", manifest, rows, dataset.clips, dataset.videos, texts=dataset.texts)
    kept = open_store(tmp_path / "t.zarr").texts
    assert {name: list(kept[name]) for name in kept} == {name: list(dataset.texts[name]) for name in dataset.texts}
    assert list(kept["split_1ka"]).count("test") == 1


# --- ActivityNet Captions ---

ANET = {
    "train.json.gz": "activitynet/captions/train.json.gz",
    "val_1.json": "activitynet/captions/val_1.json",
    "val_2.json.gz": "activitynet/captions/val_2.json.gz",
}


def test_activitynet_paragraphs(shared, place):
    root = place("activitynet_captions", ANET)
    videos = root / "activitynet_captions" / "videos" / "validation"
    videos.mkdir(parents=True)
    (videos / "v_uqiMw7tQ1Cc.mp4").touch()
    (videos / "bXdq2zI1Ms0.mkv").touch()
    dataset = load_dataset("activitynet_captions", root)
    assert counts(dataset.clips["split"]) == {"train": 10_009, "val": 4_917} and len(dataset.texts["clip"]) == 14_926
    folder = shared / "annotations" / "activitynet" / "ce_lists"
    for part, name in (("train", "train_list.txt"), ("val", "val_1_list.txt")):
        listed = set((folder / name).read_text().split())
        assert {f"v_{video}" for video in dataset.clips["id"][dataset.clips["split"] == part]} == listed
    assert captions_of(dataset, "uqiMw7tQ1Cc") == [
        "A weight lifting tutorial is given. The coach helps the guy in red with the proper body placement and lifting"
        " technique."
    ]
    told = json.loads(gzip.decompress((shared / "annotations" / ANET["train.json.gz"]).read_bytes()))
    name, entry = next(iter(told.items()))
    words = " ".join(entry["sentences"]).split()
    assert captions_of(dataset, name[2:])[0].split() == words
    checked = check_dataset(dataset)
    assert checked["videos_on_disk"] == 2 and checked["whole_video_clips"] == 14_926
    second = load_dataset("activitynet_captions:val=2", root)
    assert counts(second.clips["split"]) == {"train": 10_009, "val": 4_885} and second.name != dataset.name
    assert captions_of(second, "uqiMw7tQ1Cc") != captions_of(dataset, "uqiMw7tQ1Cc")


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("[]", "not the JSON"),
        ("{", "not the JSON"),
        ('{"v_a": {"sentences": "one"}}', "not a list of texts"),
        ('{"v_a": {"sentences": [" ", ""]}}', "video v_a has no words"),
        ('{"v_../a": {"sentences": ["b"]}}', "not a path below"),
    ],
)
def test_activitynet_malformed(place, told, says):
    root = place("activitynet_captions", {})
    (root / "activitynet_captions/annotations/train.json").write_text(told)
    with pytest.raises(UserError, match=says):
        load_dataset("activitynet_captions", root)


def test_activitynet_parts_that_overlap_and_unknown_annotation(place):
    root = place("activitynet_captions", {})
    with pytest.raises(UserError, match=r"looked for train.json and val_1.json"):
        load_dataset("activitynet_captions", root)
    for name in ("train", "val_1"):
        (root / f"activitynet_captions/annotations/{name}.json").write_text('{"v_a": {"sentences": ["b"]}}')
    with pytest.raises(UserError, match="video a is in train already"):
        load_dataset("activitynet_captions", root)
    with pytest.raises(UserError, match="val is 1 or 2"):
        load_dataset("activitynet_captions:val=3", root)


# --- LSMDC ---


def test_lsmdc(shared, place):
    root = place("lsmdc", {f"{name}.csv": f"lsmdc/{name}.synthetic.csv" for name in LSMDC})
    lines = [
        line.split("\t")
        for name in LSMDC
        for line in (shared / "annotations/lsmdc" / f"{name}.synthetic.csv").read_text().splitlines()
    ]
    movie = root / "lsmdc/videos/0001_SYNTHETIC_MOVIE_A"
    movie.mkdir(parents=True)
    (movie / f"{lines[0][0]}.avi").touch()
    dataset = load_dataset("lsmdc", root)
    assert len(dataset) == len({fields[0] for fields in lines}) and len(dataset.texts["clip"]) == len(lines)
    assert counts(dataset.clips["split"])["test"] == 10
    expected = {}
    for clip, *_, sentence in lines:
        expected.setdefault(clip, []).append(sentence)
    assert {clip: captions_of(dataset, clip) for clip in expected} == expected
    assert max(map(len, expected.values())) > 1
    (on_disk,) = np.flatnonzero(dataset.videos["path"] != "")
    assert dataset.videos["name"][on_disk] == lines[0][0] and "The_" not in dataset.videos["path"][on_disk]
    assert dataset.facts["without_caption"] == []


def test_lsmdc_quotes_silent_clips_and_wrong_lines(place):
    root = place("lsmdc", {})
    folder = root / "lsmdc/annotations"
    clip = "0024_THE_LORD_OF_THE_RINGS_00.31.10.217-00.31.10.706"
    times = "\t".join(["00.31.10.217"] * 4)
    (folder / "LSMDC16_annos_training.csv").write_text(
        f'{clip}\t{times}\t\r\nm_00.00.01.000-00.00.02.000\t{times}\tSOMEONE says "No, never\r\n'
    )
    dataset = load_dataset("lsmdc", root)
    assert dataset.texts["caption"].tolist() == ['SOMEONE says "No, never']
    assert dataset.facts["without_caption"] == [clip] and len(dataset) == 1
    (folder / "LSMDC16_annos_val.csv").write_text(f"m_00.00.01.000-00.00.02.000\t{times}\tagain\na,b,c,d,e,f\n")
    with pytest.raises(UserError, match=r"line 1: clip m_.* is in train already(.|\n)*line 2: 1 fields"):
        load_dataset("lsmdc", root)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="publictect"):
        load_dataset("lsmdc", root)


def test_retrieval_datasets_have_no_flow_images(place):
    for name in ("msrvtt", "activitynet_captions", "lsmdc"):
        with pytest.raises(UserError, match="compute flow"):
            load_dataset(name, place(name, {}), media="flow")


# --- one's own CSV ---


def test_a_csv_of_videos_and_captions(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "mine.csv").write_text("video,caption\na,a man cuts a potato\na,he cuts\nb,\n")
    dataset = load_dataset(tmp_path / "mine.csv", videos=tmp_path / "v")
    assert dataset.texts["caption"].tolist() == ["a man cuts a potato", "he cuts"]
    assert np.isnan(dataset.clips["stop_s"]).all() and len(dataset) == 2
