"""Datasets: the registry, what a Dataset is, one's own CSV and everything that can be wrong with it."""

import gzip
import json
import sys
import textwrap

import numpy as np
import pytest

from errors import UserError
from extract.csv_reading import read_csv
from extract.datasets import (
    Dataset,
    check_dataset,
    list_datasets,
    load_dataset,
    missing_videos,
    register_dataset,
    select_split,
)
from extract.datasets.base import annotation_hash, find_media, strings, walk_media
from extract.datasets.epic_csv import EpicPart, epic_dataset
from extract.datasets.registry import parse_options

# ---- the registry ----------------------------------------------------------------------------------------


def test_registry_lists_and_refuses_duplicates():
    assert "epic55" in list_datasets()
    with pytest.raises(ValueError, match="'epic55' is registered twice"):
        register_dataset("epic55")(lambda data_root, media: None)
    with pytest.raises(ValueError, match="lower-case"):
        register_dataset("Epic 55")


def test_unknown_dataset_names_near_ones():
    with pytest.raises(UserError, match=r"no dataset 'epic5': did you mean epic55 or epic100\?"):
        load_dataset("epic5")
    with pytest.raises(UserError, match="no dataset 'base'.*Known: .*epic55"):
        load_dataset("base")


def test_options():
    assert parse_options("a=1,b=0.5,c=x,d=true") == {"a": 1, "b": 0.5, "c": "x", "d": True}
    assert parse_options("") == {}
    for wrong in ("a", "a=", "=1", "a=1,a=2", "a b=1"):
        with pytest.raises(UserError, match="option"):
            parse_options(wrong)
    with pytest.raises(UserError, match="epic55 has no option 'size'; it takes: none"):
        load_dataset("epic55:size=3", "/nowhere")


def test_data_root_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("CLIPBANK_DATA", raising=False)
    with pytest.raises(UserError, match="--data DIR or set CLIPBANK_DATA"):
        load_dataset("epic55")
    with pytest.raises(UserError, match=f"looked for {tmp_path / 'epic55'}"):
        load_dataset("epic55", tmp_path)
    monkeypatch.setenv("CLIPBANK_DATA", str(tmp_path))
    (tmp_path / "epic55").mkdir()
    with pytest.raises(UserError, match=f"looked for {tmp_path / 'epic55' / 'annotations'}"):
        load_dataset("epic55")
    (tmp_path / "epic55" / "annotations").mkdir()
    with pytest.raises(UserError, match="EPIC_train_action_labels.csv"):
        load_dataset("epic55")
    with pytest.raises(UserError, match="--videos goes with a CSV"):
        load_dataset("epic55", tmp_path, videos=tmp_path)
    with pytest.raises(UserError, match="media 'audio'"):
        load_dataset("epic55", tmp_path, media="audio")


PLUGIN = """
    import numpy as np
    from extract.datasets.base import Dataset, strings

    def two(data_root, media, seconds=1.0):
        videos = {"name": strings(["v"]), "path": strings([""]), "kind": strings([""])}
        clips = {"id": strings(["c"]), "video": np.zeros(1, np.int32), "start_s": np.zeros(1),
                 "stop_s": np.full(1, seconds)}
        return Dataset("two", data_root, videos, clips)

    def wrong(data_root, media):
        return 3
"""


def test_ones_own_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(PLUGIN))
    dataset = load_dataset(f"py:{path}:two:seconds=2.5", tmp_path)
    assert dataset.clips["stop_s"][0] == 2.5 and dataset.facts["plugin"].startswith("sha256:")
    with pytest.raises(UserError, match="returned int"):
        load_dataset(f"py:{path}:wrong")
    with pytest.raises(UserError, match="no function 'three'"):
        load_dataset(f"py:{path}:three")
    with pytest.raises(UserError, match="no file"):
        load_dataset("py:absent.py:two")
    with pytest.raises(UserError, match="write py:"):
        load_dataset("py:absent.py")
    path.write_text("import nothing_of_this_name")
    with pytest.raises(UserError, match="could not be imported: ModuleNotFoundError"):
        load_dataset(f"py:{path}:two")


# ---- Dataset ---------------------------------------------------------------------------------------------


def make(tmp_path, **changes):
    fields = {
        "name": "d",
        "root": tmp_path,
        "videos": {"name": strings("ab"), "path": strings(["", "b.mp4"]), "kind": strings(["", "file"])},
        "clips": {
            "id": strings("xyz"),
            "video": np.array([0, 1, 1], np.int32),
            "start_s": np.array([0.0, 1.0, 2.0]),
            "stop_s": np.array([1.0, 2.0, np.nan]),
            "verb": np.array([0, -1, 2], np.int32),
            "split": strings(["train", "val", "val"]),
            "split_b": strings(["one", "two", "one"]),
        },
    }
    for key, value in changes.items():
        table, _, column = key.partition("__")
        fields[table] = {**fields[table], column: value} if column else value
    return Dataset(**fields)


def test_dataset_is_validated(tmp_path):
    assert len(make(tmp_path)) == 3
    assert make(tmp_path).video_path(0) is None and make(tmp_path).video_path(1) == tmp_path / "b.mp4"
    assert missing_videos(make(tmp_path)) == ["a"]
    for changes, message in (
        ({"clips__id": strings("xyx")}, "clip id 'x' occurs 2 times"),
        ({"videos__name": strings("aa")}, "video name 'a' occurs 2 times"),
        ({"clips__video": np.array([0, 1, 2], np.int32)}, r"clips.video has indices outside \[0, 2\)"),
        ({"clips__stop_s": np.array([1.0, 1.0, 3.0])}, r"clip 'y' is \[1.0, 1.0\) s"),
        ({"clips__start_s": np.array([0.0, 1.0, -0.5])}, "clip 'z'"),
        ({"clips__start_s": np.array([0.0, 1.0, np.nan])}, "clip 'z'"),
        ({"clips__verb": np.zeros(2, np.int32)}, "columns differ in length"),
        ({"labels": {"clip": np.array([3], np.int32), "label": np.array([0], np.int32)}}, "labels.clip"),
        ({"boxes": {"video": np.array([0], np.int32)}}, "boxes without box_reference"),
    ):
        with pytest.raises(UserError, match=message):
            make(tmp_path, **changes)


def test_annotation_hash_is_of_content(tmp_path):
    plain = make(tmp_path)
    assert plain.annotation_hash == make(tmp_path / "elsewhere", videos__path=strings(["", ""])).annotation_hash
    assert plain.annotation_hash != make(tmp_path, clips__verb=np.array([0, -1, 1], np.int32)).annotation_hash
    assert plain.annotation_hash != make(tmp_path, videos__name=strings("ac")).annotation_hash
    wide = {**plain.clips, "verb": plain.clips["verb"].astype(np.int64)}
    names = plain.videos["name"]
    assert annotation_hash(names, wide) == annotation_hash(names, plain.clips)
    # fixed for ever: stores record it
    table = {"a": np.array([0.5, np.nan]), "b": strings(["é", ""]), "c": np.array([1, -1], np.int32)}
    expected = "sha256:f52671e1"
    assert annotation_hash(["v"], table, None).startswith(expected)


def test_select_split(tmp_path):
    clips = make(tmp_path).clips
    assert select_split(clips, None).all()
    assert select_split(clips, "val").tolist() == [False, True, True]
    assert select_split(clips, "train+val").all()
    assert select_split(clips, "b:one").tolist() == [True, False, True]
    with pytest.raises(UserError, match="no part 'test' in split; it has 'train', 'val'"):
        select_split(clips, "test")
    with pytest.raises(UserError, match="no split scheme 'c'; schemes: b"):
        select_split(clips, "c:one")


def test_find_media(tmp_path):
    for name in (
        "videos/train/P01/P01_01.MP4",
        "videos/P02_01.mkv",
        "videos/._P02_01.mkv",
        "videos/P02_01.srt",
        "videos/.cache/P02_01.mp4",
        "rgb_frames/P01/P01_01/frame_0000000001.jpg",
        "rgb_frames/P01/P03_01/frame_0000000001.jpg",
        "rgb_frames/P04_01.tar",
        "flow_frames/P01/P01_01/u/frame_0000000001.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "videos/loop").symlink_to(tmp_path / "videos")
    names = ["P01_01", "P02_01", "P03_01", "P04_01", "P05_01"]
    path, kind = find_media(tmp_path, names)
    assert path.tolist() == [
        "videos/train/P01/P01_01.MP4", "videos/P02_01.mkv",
        "rgb_frames/P01/P03_01", "rgb_frames/P04_01.tar", ""
    ]  # fmt: skip
    assert kind.tolist() == ["file", "file", "frames", "tar", ""]
    path, kind = find_media(tmp_path, names, "flow")
    assert path.tolist() == ["flow_frames/P01/P01_01", "", "", "", ""] and kind[0] == "frames"
    assert ("P01/P01_01", "frames") in list(walk_media(tmp_path / "rgb_frames", names))

    (tmp_path / "videos/P01_01.avi").touch()
    with pytest.raises(UserError, match=r"'P01_01' is there twice.*videos/P01_01.avi and videos/train/P01/P01_01.MP4"):
        find_media(tmp_path, names)


# ---- segments as EPIC writes them ------------------------------------------------------------------------


EPIC_HEADER = "uid,video_id,narration,start_frame,stop_frame,verb_class,noun_class,all_noun_classes\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("5,P01_01,x,10,10,0,0,[0]", "line 3: field 'stop_frame' is '10': not after start_frame 10"),
        ("5,P01_01,x,0,10,0,0,[0]", "line 3: field 'start_frame' is '0': outside 1.."),
        ("5,P01_01,x,a,10,0,0,[0]", "line 3: field 'start_frame' is 'a': not an integer"),
        ("5,P01_01,x,1,10,3,0,[0]", r"line 3: field 'verb_class' is '3': outside 0..2"),
        ("5,P01_01,x,1,10,,0,[0]", "line 3: field 'verb_class' is '': not an integer"),
        ("5,P01_01,x,1,10,0,0,0", "line 3: field 'all_noun_classes' is '0': not a list"),
        ("5,P01_01,x,1,10,0,0,[9]", r"line 3: field 'all_noun_classes' is '\[9\]'"),
        ("4,P01_01,x,1,10,0,0,[0]", "line 3: field 'uid' is '4': already used by s.csv, line 2"),
        (",P01_01,x,1,10,0,0,[0]", "line 3: field 'uid' is ''"),
        ("5,../P01_01,x,1,10,0,0,[0]", "line 3: field 'video_id' is '../P01_01': not a video's name"),
        ("5,P01_01,x,1,10,0", "line 3: 6 fields, but the header has 8"),
    ],
)
def test_malformed_epic_rows(tmp_path, row, message):
    path = tmp_path / "s.csv"
    path.write_text(f'{EPIC_HEADER}4,P01_01,open door,8,202,0,1,"[1, 1, 0]"\n{row}\n')
    with pytest.raises(UserError, match=message) as caught:
        epic_dataset("s", tmp_path, [EpicPart(path, "train")], verb_names="abc", noun_names="abc")
    assert str(path) in str(caught.value)


def test_epic_style_helper(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(f'{EPIC_HEADER}4,P01_01,open door,8,202,0,1,"[1, 1, 0]"\n')
    dataset = epic_dataset("s", tmp_path, [EpicPart(path, "train")], verb_names="abc", noun_names="abc")
    assert dataset.labels["label"].tolist() == [1, 0] and dataset.clips["action"].tolist() == [0]


# ---- one's own CSV ---------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """Write a CSV and load it: own(text, *video files)."""

    def load(text, *files, name="mine.csv", **options):
        folder = tmp_path / "videos"
        folder.mkdir(exist_ok=True)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_dataset(path, videos=folder, **options)

    return load


def test_own_csv(own):
    dataset = own(
        "video,start,stop,verb,noun,mood,split,split_b,caption\n"
        "a.mp4,0,2.5,3,cup,happy,train,x,one\n"
        'sub/b,1,,0,bowl,,val,y,"two, quoted"\n'
        "a,1.0,2.5,-1,,sad,val,x,\n",
        "a.mp4",
        "sub/b.mkv",
        "unused.mp4",
    )
    assert dataset.name == "mine" and dataset.family == ""
    assert dataset.videos["name"].tolist() == ["a", "sub/b"]
    assert dataset.videos["path"].tolist() == ["a.mp4", "sub/b.mkv"]
    clips = dataset.clips
    assert clips["id"].tolist() == ["a_0.000_2.500", "sub/b_1.000_end", "a_1.000_2.500"]
    assert clips["video"].tolist() == [0, 1, 0] and np.isnan(clips["stop_s"][1])
    assert clips["verb"].tolist() == [3, 0, -1] and dataset.classes == {"verb": 4, "noun": 2, "mood": 2}
    assert clips["noun"].tolist() == [1, 0, -1] and dataset.class_names["noun"] == ["bowl", "cup"]
    assert clips["mood"].tolist() == [0, -1, 1]
    assert clips["action"].tolist() == [1, 0, -1]
    assert clips["split_b"].tolist() == ["x", "y", "x"]
    assert dataset.texts["clip"].tolist() == [0, 1] and dataset.texts["caption"][1] == "two, quoted"
    assert dataset.saoa and dataset.grid_fps is None
    result = json.loads(json.dumps(check_dataset(dataset)))
    assert (result["rows"], result["whole_video_clips"], result["videos_on_disk"]) == (3, 1, 2)


def test_own_csv_minimal_and_forms(own):
    for text in (
        "video,start,stop\na,0,1\n",
        "video,start,stop\r\na,0,1\r\n\r\n",
        "\ufeffvideo, start , stop\n a , 0 , 1\n",
        "\n\nstop,video,start\n1,a,0",
        'video,start,stop\n"a","0","1"\n',
    ):
        dataset = own(text, "a.mp4")
        assert dataset.clips["stop_s"].tolist() == [1.0] and missing_videos(dataset) == []
        assert dataset.clips["split"].tolist() == ["train"] and dataset.texts is None
    packed = own(gzip.compress(b"video,start,stop\na,0,1\n"), name="packed.csv.gz")
    assert packed.name == "packed" and len(packed) == 1


def test_own_csv_ids_do_not_depend_on_order(own):
    forward = own("video,start,stop\na,0,1\na,2,3\n", "a.mp4")
    backward = own("video,start,stop\na,2,3\na,0,1\n")
    assert sorted(forward.clips["id"]) == sorted(backward.clips["id"])


def test_own_csv_missing_videos(own):
    dataset = own("video,start,stop\na,0,1\nb.mp4,0,1\n", "a.mp4")
    assert missing_videos(dataset) == ["b"] and dataset.video_path(1) is None


def test_own_csv_several_captions(own):
    dataset = own("video,start,stop,caption\na,0,1,one\na,2,3,two\na,0,1,three\n", "a.mp4")
    assert len(dataset) == 2
    assert dataset.texts["clip"].tolist() == [0, 1, 0] and dataset.texts["caption"].tolist() == [
        "one",
        "two",
        "three",
    ]
    dataset = own("id,video,start,stop,caption\nc,a,0,1,one\nc,a,0,1,two\nd,a,0,1,three\n")
    assert dataset.clips["id"].tolist() == ["c", "d"]


def test_own_csv_same_interval_under_two_ids(own):
    assert len(own("id,video,start,stop,verb\nx,a,0,1,0\ny,a,0,1,1\n", "a.mp4")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.csv: is empty; its first line must be a header with video,start,stop"),
        ("\n\n", "is empty"),
        ("video,start,stop\n", "has a header but no rows"),
        ("a.mp4,0,1\n", "line 1: no column 'video', 'start', 'stop'.*is the header line missing"),
        ("video,begin,stop\na,0,1\n", "line 1: no column 'start' in the header 'video,begin,stop'"),
        ("video;start;stop\na;0;1\n", "separated by commas"),
        ("video,start,stop,stop\na,0,1,1\n", "line 1: column 'stop' is there 2 times"),
        ("video,start,stop,\na,0,1,1\n", "line 1: column 4 has no name"),
        ("video,start,stop\na,0\n", "line 2: 2 fields, but the header has 3"),
        ("video,start,stop\na,0,1,2\n", "line 2: 4 fields"),
        ("video,start,stop\na,x,1\n", "line 2: field 'start' is 'x': not a number; give seconds"),
        ("video,start,stop\na,00:01,90\n", "line 2: field 'start' is '00:01': not a number"),
        ("video,start,stop\na,,1\n", "line 2: field 'start' is '': not a number"),
        ("video,start,stop\na,nan,1\n", "line 2: field 'start' is 'nan': not a finite"),
        ("video,start,stop\na,0,inf\n", "line 2: field 'stop' is 'inf': not a finite"),
        ("video,start,stop\na,-1,1\n", "line 2: field 'start' is '-1': negative"),
        ("video,start,stop\na,5,4\n", "line 2: field 'stop' is '4': not after start 5"),
        ("video,start,stop\na,5,5\n", "line 2: field 'stop' is '5': not after start 5"),
        ("video,start,stop\n,0,1\n", "line 2: field 'video' is '': every row names a video"),
        ("video,start,stop\n../a,0,1\n", "line 2: field 'video' is '../a': must be a path below"),
        ("video,start,stop\n/etc/a.mp4,0,1\n", "line 2: field 'video' is '/etc/a.mp4'"),
        ("video,start,stop\na\\b,0,1\n", "line 2: field 'video'"),
        ("id,video,start,stop\nx,a,0,1\n\nx,a,2,3\n", "line 4: field 'id' is 'x': already the id of line 2"),
        ("id,video,start,stop\nx,a,0,1\nx,a,0,1\n", "line 3: field 'id' is 'x': already the id of line 2"),
        ("id,video,start,stop\n,a,0,1\n", "line 2: field 'id' is '': every row has an id"),
        ("video,start,stop\na,0,1\na,0,1\n", "line 3: the same video, start and stop as line 2"),
        ("video,start,stop,verb\na,0,1,-5\n", "line 2: field 'verb' is '-5': class ids are 0.."),
        ("video,start,stop,verb\na,0,1,99999999999\n", "field 'verb' is '99999999999': class ids"),
        ("video,start,stop,status\na,0,1,1\n", "line 1: column 'status': this name cannot be a label's"),
        ('video,start,stop\n"a,0,1\n', "line 2: cannot be parsed"),
        (b"video,start,stop\na\xe9,0,1\n", "line 2: byte 0xe9 is not UTF-8"),
        ("video,start,stop\na,0,1\n".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
        (b"video,start,stop\na,0,1\n\0\n", "line 3: contains a zero byte"),
    ],
)
def test_malformed_own_csv(own, text, message):
    with pytest.raises(UserError, match=message) as caught:
        own(text, "a.mp4")
    assert "mine.csv" in str(caught.value) and caught.value.exit_code == 2


def test_errors_are_collected(own):
    rows = "".join(f"a,{i},{i - 1}\n" for i in range(1, 15)) + "a,x,1\n"
    with pytest.raises(UserError) as caught:
        own(f"video,start,stop\n{rows}", "a.mp4")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and "line 2:" in lines[0] and "line 11:" in lines[9] and "5 more" in lines[10]
    with pytest.raises(UserError) as caught:
        own("id,video,start,stop\nx,a,0,1\nx,a,3,2\n,b,q,1\n", "a.mp4")
    lines = str(caught.value).splitlines()
    assert [line.partition("line ")[2][0] for line in lines] == ["3", "3", "4", "4"]


def test_line_numbers_count_quoted_newlines(own):
    with pytest.raises(UserError, match="line 4: field 'start' is 'x'"):
        own('video,start,stop,caption\na,0,1,"two\nlines"\na,x,1,\n', "a.mp4")


def test_own_csv_videos_folder(own, tmp_path):
    path = tmp_path / "alone.csv"
    path.write_text("video,start,stop\na,0,1\n")
    with pytest.raises(UserError, match="give --videos DIR"):
        load_dataset(path)
    with pytest.raises(UserError, match="not a folder"):
        load_dataset(path, videos=tmp_path / "absent")
    with pytest.raises(UserError, match="no file .*absent.csv"):
        load_dataset(tmp_path / "absent.csv", videos=tmp_path)
    with pytest.raises(UserError, match="needs a dataset with flow frames"):
        load_dataset(path, videos=tmp_path, media="flow")


def test_own_csv_two_files_of_one_stem(own):
    with pytest.raises(UserError, match=r"'video' is 'a': two files match below .*: a.mkv and a.mp4"):
        own("video,start,stop\na,0,1\n", "a.mp4", "a.mkv")
    assert own("video,start,stop\na.mp4,0,1\n").videos["path"].tolist() == ["a.mp4"]
    with pytest.raises(UserError, match="line 3: field 'video' is 'a.mkv': another file than a.mp4"):
        own("video,start,stop\na.mp4,0,1\na.mkv,2,3\n")


def test_own_csv_videos_in_sub_folders(own):
    with pytest.raises(UserError, match="two files match below .*: one/a.mp4 and two/a.mp4"):
        own("video,start,stop\na,0,1\n", "one/a.mp4", "two/a.mp4", "b.mp4")
    dataset = own("video,start,stop\none/a,0,1\ntwo/a.mp4,0,1\nb,0,1\n")
    assert dataset.videos["path"].tolist() == ["b.mp4", "one/a.mp4", "two/a.mp4"]
    own("video,start,stop\na.mp4,0,1\ntwo/a,0,1\n", "a.mp4")  # the one at the top can be meant, too
    with pytest.raises(UserError, match="is the file three/c.mp4, which other rows call 'c'"):
        own("video,start,stop\nc,0,1\nthree/c,0,1\n", "three/c.mp4")


def test_damaged_gzip(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"video,start,stop\n" * 100)[:-12])
    with pytest.raises(UserError, match="damaged gzip"):
        read_csv(path, ["video"])
    path.write_bytes(b"video,start,stop\n")
    with pytest.raises(UserError, match="damaged gzip"):
        read_csv(path, ["video"])
    with pytest.raises(UserError, match="is a folder"):
        read_csv(tmp_path, ["video"])


def test_importing_the_package_is_light():
    import subprocess

    code = "import sys, extract.datasets; assert 'numpy' not in sys.modules, 'numpy'"
    subprocess.run([sys.executable, "-c", code], check=True)
