"""Boxes read from files: our CSV, EPIC-55's object labels, EPIC-100's hand-object detections."""

import csv
import gzip
import pickle
import struct

import numpy as np
import pytest

from errors import UserError
from extract.box_files import hand_object_time, object_label_time, read_boxes

LABELS = "noun_class,noun,participant_id,video_id,frame,bounding_boxes\n"


def written(path, text):
    path.write_text(text)
    return path


# -- CSV -----------------------------------------------------------------------------------------------------------


def test_plain_csv(tmp_path):
    path = written(tmp_path / "boxes.csv", "video,time,x1,y1,x2,y2,score\na,0.5,0.1,0.2,0.3,0.4,0.9\nb,1,0,0,1,1,0.2\n")
    found = read_boxes(path)
    assert found.table["video"].tolist() == ["a", "b"] and found.table["time_s"].tolist() == [0.5, 1.0]
    assert found.table["x2"].dtype == np.float32 and found.table["class"].dtype == np.int32
    np.testing.assert_allclose(found.table["score"], [0.9, 0.2], rtol=1e-6)
    assert read_boxes(path, min_score=0.5).table["video"].tolist() == ["a"]
    assert read_boxes(path, videos=["b"]).table["video"].tolist() == ["b"]


def test_plain_csv_mistakes(tmp_path):
    path = written(tmp_path / "b.csv", "video,time,x1,y1,x2,y2\na,0,0.5,0,0.4,1\na,x,0,0,1,1\na,0,0,0,1,1.5\n")
    with pytest.raises(UserError) as error:
        read_boxes(path)
    assert "b.csv, line 2: box (0.5, 0.0, 0.4, 1.0)" in str(error.value)
    assert "b.csv, line 3: field 'time' is 'x'" in str(error.value) and "line 4" in str(error.value)
    with pytest.raises(UserError, match="no column 'time', 'x1'"):
        read_boxes(written(tmp_path / "c.csv", "video,when\na,1\n"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_boxes(tmp_path / "none.csv")


# -- EPIC-55 object labels -----------------------------------------------------------------------------------------


def test_object_labels(tmp_path):
    """The README's own example (bag), an empty list, several boxes, and boxes at and over the frame's edge."""
    text = (
        '20,bag,P01,P01_01,056581,"[(76, 1260, 462, 186)]"\n'
        "7,pan,P01,P01_01,0000031,[]\n"
        '7,frying pan,P01,P01_01,61,"[(0, 0, 1080, 1920), (540, 960, 600, 2000)]"\n'
        '7,pan,P10,P10_04,61,"[(1, 2, 3, 4)]"\n'
        '7,pan,P10,P10_04,91,"[(5, 5, 0, 9), (1080, 5, 10, 10)]"\n'
    )
    found = read_boxes(written(tmp_path / "EPIC_train_object_labels.csv", LABELS + text))
    table = found.table
    assert table["video"].tolist() == ["P01_01"] * 3 + ["P10_04"] and table["class"].tolist() == [20, 7, 7, 7]
    first = [table[c][0] for c in ("x1", "y1", "x2", "y2")]
    np.testing.assert_allclose(first, [1260 / 1920, 76 / 1080, 1446 / 1920, 538 / 1080], rtol=1e-6)
    np.testing.assert_allclose([table[c][2] for c in ("x1", "y1", "x2", "y2")], [0.5, 0.5, 1, 1])
    np.testing.assert_allclose(table["time_s"], [56580 * 1001 / 60000, 1.001, 1.001, 1.0])
    assert table["time_s"].dtype == np.float64 and (table["score"] == 1).all()
    assert found.classes == {20: "bag", 7: "pan"} and found.left_out == 2


def test_object_label_mistakes(tmp_path):
    text = (
        '20,bag,P01,P01_01,0,"[(1, 2, 3, 4)]"\n'
        'x,bag,P01,P01_01,31,"[(1, 2, 3)]"\n'
        "20,bag,P01,P01_01,31,__import__('os')\n"
        '20,bag,P01,P01_01,31,"[(1, 2, 3, 4)"\n'
    )
    with pytest.raises(UserError) as error:
        read_boxes(written(tmp_path / "labels.csv", LABELS + text))
    message = str(error.value)
    assert "labels.csv, line 2: field 'frame' is '0': outside 1" in message
    assert "line 3: field 'noun_class' is 'x'" in message
    for line in (3, 4, 5):
        assert f"line {line}: field 'bounding_boxes' is" in message
    with pytest.raises(UserError, match="no column 'frame' beside"):
        read_boxes(written(tmp_path / "m.csv", "noun_class,noun,video_id,bounding_boxes\n1,a,P01_01,[]\n"))


def test_object_frames_agree_with_the_published_correspondence(shared):
    """EPIC's own tables give each object frame its action frame, which is (frame - 1) / 60 s by METHODS section 3."""
    differences = []
    for part in ("s1", "s2"):
        path = shared / "annotations" / "epic-kitchens-55" / f"EPIC_test_{part}_object_action_correspondence.csv.gz"
        with gzip.open(path, "rt") as file:
            for row in csv.DictReader(file):
                ours = object_label_time(row["video_id"], int(row["object_frame"]))
                differences.append(abs(ours - (int(row["action_frame"]) - 1) / 60))
    differences = np.array(differences)
    assert len(differences) == 105_670
    assert np.quantile(differences, 0.99) < 2 / 60 and (differences > 0.2).mean() < 0.002


# -- EPIC-100 hand-object detections -------------------------------------------------------------------------------


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field, value):
    """A 32-bit float; zeros are not written, as in proto3."""
    return varint(field << 3 | 5) + struct.pack("<f", value) if value else b""


def part(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def integer(field, value):
    return varint(field << 3) + varint(value) if value else b""


def box(*corners):
    return part(1, b"".join(number(i + 1, v) for i, v in enumerate(corners)))


def detections(video, frame, hands=(), objects=()):
    """message Detections: hands are (corners, score, side), objects (corners, score)."""
    out = part(1, video.encode()) + integer(2, frame)
    for corners, score, side in hands:
        offset = part(4, number(1, 0.1) + number(2, -0.2))
        out += part(3, box(*corners) + number(2, score) + integer(3, 3) + offset + integer(5, side))
    for corners, score in objects:
        out += part(4, box(*corners) + number(2, score))
    return out


def saved(path, entries, protocol=3):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(pickle.dumps(entries, protocol))
    return path


def test_hand_object_detections(tmp_path):
    entries = [
        detections("P01_101", 1),
        detections(
            "P01_101",
            301,
            hands=[((0.25, 0.5, 0.75, 1.0), 0.875, 0), ((0.0, 0.0, 0.5, 0.5), 0.25, 1)],
            objects=[((0.0, 0.25, 0.5, 0.75), 0.5), ((0.5, 0.5, 0.5, 0.75), 0.9)],
        ),
        detections("P01_101", 70000, objects=[((0.0, 0.0, 1.0, 1.0), 0.0625)]),
    ]
    for protocol in (2, 3, 4, 5):
        found = read_boxes(saved(tmp_path / "P01_101.pkl", entries, protocol))
        assert found.table["video"].tolist() == ["P01_101"] * 4
        np.testing.assert_allclose(found.table["time_s"], [6.0, 6.0, 6.0, 69999 / 50])
        assert found.table["class"].tolist() == [1, 2, 0, 0]
        assert found.table["score"].tolist() == [0.875, 0.25, 0.5, 0.0625]
        corners = np.stack([found.table[c] for c in ("x1", "y1", "x2", "y2")], 1)
        assert corners.tolist()[:3] == [[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.25, 0.5, 0.75]]
        assert found.classes == {0: "object", 1: "left hand", 2: "right hand"} and found.left_out == 1
    renamed = tmp_path / "detections.bin"
    (tmp_path / "P01_101.pkl").rename(renamed)
    assert len(read_boxes(renamed, min_score=0.5).table["score"]) == 2


def test_a_folder_of_them_by_video_and_grid(tmp_path):
    """Every frame is detected; a 2 fps grid keeps one in 30 of a 60 fps video, one in 25 of a 50 fps one."""
    whole = ((0.0, 0.0, 1.0, 1.0), 0.5)
    for video in ("P01_01", "P01_101"):
        frames = [detections(video, f, objects=[whole]) for f in range(1, 121)]
        saved(tmp_path / "P01" / f"{video}.pkl", frames)
    assert len(read_boxes(tmp_path).table["score"]) == 240
    found = read_boxes(tmp_path, videos=["P01_01"], fps=2.0).table
    assert set(found["video"]) == {"P01_01"} and found["time_s"].tolist() == [0.0, 0.5, 1.0, 1.5]
    assert read_boxes(tmp_path, videos=["P01_101"], fps=2.0).table["time_s"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert len(read_boxes(tmp_path, videos=["P01_01"], fps=7.0).table["score"]) == 14
    assert len(read_boxes(tmp_path, videos=[]).table["score"]) == 0
    with pytest.raises(UserError, match="holds no .pkl file"):
        read_boxes((tmp_path / "empty").mkdir() or tmp_path / "empty")


@pytest.mark.parametrize(
    "entry, message",
    [
        (detections("P01_101", 3)[:-1], "entry 2: damaged: it ends within a number"),
        (detections("P01_101", 3, objects=[((0, 0, 1, 1), 1.0)])[:-3], "entry 2: damaged: field 4 ends at byte"),
        (detections("", 3), "field 'video_id' is missing"),
        (detections("P01_101", 0), "field 'frame_number' is 0"),
        (integer(1, 7), "field 'video_id' is written as int"),
        (detections("P01_101", 3, objects=[((0, 0, 2, 1), 1.0)]), "field 'bbox' is"),
        (detections("P01_101", 3, objects=[((0, 0, 1, 1), float("nan"))]), "field 'score' is nan"),
        (detections("P01_101", 3, hands=[((0, 0, 1, 1), 0.5, 2)]), "field 'side' is 2"),
        (b"\x0b\x00", "damaged: wire type 3"),
        (b"\xff" * 12, "more than 64 bits"),
        ("text", "a str, expected serialised detections"),
    ],
)
def test_damaged_detections_are_named(tmp_path, entry, message):
    path = saved(tmp_path / "P01_101.pkl", [detections("P01_101", 1), entry])
    with pytest.raises(UserError) as error:
        read_boxes(path)
    assert "P01_101.pkl" in str(error.value) and message in str(error.value)


def test_pickles_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    with pytest.raises(UserError, match="refuses"):
        read_boxes(saved(tmp_path / "P01_101.pkl", [Evil()]))
    assert not (tmp_path / "made").exists()
    with pytest.raises(UserError, match="holds a dict"):
        read_boxes(saved(tmp_path / "P01_102.pkl", {"a": 1}))


def test_the_wire_reader_agrees_with_protobuf(tmp_path):
    """Where the protobuf package is installed, its own bytes of the published schema are read."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2", reason="package protobuf is not installed")
    from google.protobuf import descriptor_pool, message_factory

    schema = {
        "BBox": [("left", 1, "FLOAT"), ("top", 2, "FLOAT"), ("right", 3, "FLOAT"), ("bottom", 4, "FLOAT")],
        "Vector": [("x", 1, "FLOAT"), ("y", 2, "FLOAT")],
        "Hand": [("bbox", 1, "BBox"), ("score", 2, "FLOAT"), ("state", 3, "INT32"), ("offset", 4, "Vector"),
                 ("side", 5, "INT32")],
        "Object": [("bbox", 1, "BBox"), ("score", 2, "FLOAT")],
        "Detections": [("video_id", 1, "STRING"), ("frame_number", 2, "INT32"), ("hands", 3, "Hand*"),
                       ("objects", 4, "Object*")],
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="hoa.proto", package="hoa", syntax="proto3")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in schema.items():
        message = file.message_type.add(name=name)
        for field, tag, kind in fields:
            added = message.field.add(name=field, number=tag, label=3 if kind.endswith("*") else 1)
            plain = kind.rstrip("*")
            added.type = getattr(field_type, f"TYPE_{plain}") if plain not in schema else field_type.TYPE_MESSAGE
            if plain in schema:
                added.type_name = f".hoa.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    make = message_factory.GetMessageClass(pool.FindMessageTypeByName("hoa.Detections"))
    record = make(video_id="P02_105", frame_number=51)
    hand = record.hands.add(score=0.75, state=4, side=1)
    hand.bbox.left, hand.bbox.top, hand.bbox.right, hand.bbox.bottom = 0.0, 0.125, 0.25, 0.5
    hand.offset.x = -0.5
    record.objects.add(score=0.5).bbox.right = 1.0
    found = read_boxes(saved(tmp_path / "P02_105.pkl", [record.SerializeToString()]))
    assert found.table["class"].tolist() == [2] and found.left_out == 1  # the object has no height
    assert [found.table[c][0] for c in ("x1", "y1", "x2", "y2", "score")] == [0.0, 0.125, 0.25, 0.5, 0.75]
    assert found.table["time_s"].tolist() == [hand_object_time("P02_105", 51)] == [1.0]
