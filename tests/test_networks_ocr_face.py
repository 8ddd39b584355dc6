"""What is written in frames, and whose faces are in them: the ocr and face networks."""

import socket
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from drawn import faces_frame, words_frame
from PIL import Image

from errors import UserError
from extract.networks import create_network, network_spec, packages
from extract.networks.ocr_model import _SETTINGS, _packed, keep_best, line_words
from extract.networks.text_rows import unpack_items
from extract.weights import RandomWeightsWarning

warnings.simplefilter("ignore", RandomWeightsWarning)
needs_rapidocr = pytest.mark.skipif(find_spec("rapidocr") is None, reason="package rapidocr is not installed")
needs_dlib = pytest.mark.skipif(
    any(find_spec(p) is None for p in ("dlib", "face_recognition_models")),
    reason="package dlib or face_recognition_models is not installed",
)
SMALL_TEXT = {"text_options": {"layers": 2}}


def words_of(row):
    return [item["word"] for item in unpack_items(row)]


# -- ocr: words ----------------------------------------------------------------------------------------------------


def item(word, score):
    return {"word": word, "box": [0.1, 0.1, 0.2, 0.2], "score": score}


def test_the_best_words_stay_in_reading_order():
    words = [item("a", 0.5), item("b", 0.9), item("c", 0.5), item("d", 0.7)]
    assert [w["word"] for w in keep_best(words, 2)] == ["b", "d"]
    assert [w["word"] for w in keep_best(words, 3)] == ["a", "b", "d"]
    size = len('{"word":"a","box":[0.1,0.1,0.2,0.2],"score":0.5}')
    for limit, kept in ((4 * size + 5, "abcd"), (4 * size + 4, "abd"), (2 * size + 3, "bd"), (size, ""), (2, "")):
        assert "".join(words_of(_packed(words, limit))) == kept


def test_a_line_is_split_at_its_blanks():
    characters = [np.array([[x, 0], [x + 1, 0], [x + 1, 2], [x, 2]]) for x in range(5)]
    corners = np.array([[0, 0], [9, 0], [9, 2], [0, 2]])
    (first, one), (second, two) = line_words(" ab  cde", corners, characters)
    assert (first, second) == ("ab", "cde") and one[:, 0].max() == 2 and (two[:, 0].min(), two[:, 0].max()) == (2, 5)
    assert line_words("寿司屋 x", corners, characters[:4])[0][0] == "寿司屋"
    for word, place in line_words("ab cde", corners, characters[:4]):  # characters are missing: the line's place
        assert word in ("ab", "cde") and np.array_equal(place, corners)


@pytest.fixture(scope="module")
def ocr():
    return create_network("ocr", "random:0", **SMALL_TEXT)


@needs_rapidocr
def test_ocr_reads_what_is_drawn(ocr):
    frame = words_frame(0, ["Olive oil 500 ml", "PASTA 2020"])
    out = ocr.run({"frames": [frame]})
    items = unpack_items(out["text"][0])
    assert [i["word"] for i in items] == ["Olive", "oil", "500", "ml", "PASTA", "2020"]
    assert out["n_text"].tolist() == out["n_tokens"].tolist() == [6]
    height, width = frame.shape[:2]
    bright = frame.min(2) > 200
    for i in items:
        x1, y1, x2, y2 = (np.array(i["box"]) * [width, height, width, height]).round().astype(int)
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and 0.5 <= i["score"] <= 1
        assert bright[y1:y2, x1:x2].any(), i
        bright[max(0, y1 - 3) : y2 + 3, max(0, x1 - 6) : x2 + 6] = False
    assert not bright.any(), "some writing lies outside all boxes"
    assert [i["box"][0] for i in items[:4]] == sorted(i["box"][0] for i in items[:4])
    assert max(i["box"][3] for i in items[:4]) < min(i["box"][1] for i in items[4:])


@needs_rapidocr
def test_ocr_tokens_are_the_text_networks_vectors(ocr):
    out = ocr.run({"frames": [words_frame(0, ["PASTA 2020", "PASTA milk"]), None, words_frame(1)]})
    words = words_of(out["text"][0])
    text = create_network("minilm", "random:0", layers=2)
    np.testing.assert_allclose(out["tokens"][0, :4], text.run({"texts": words})["vector"], atol=1e-5)
    assert np.array_equal(out["tokens"][0, 0], out["tokens"][0, 2]) and not out["tokens"][0, 4:].any()
    assert not out["text"][1].any() and not out["tokens"][1].any() and out["n_text"][1] == 0


@needs_rapidocr
def test_ocr_of_a_frame_without_writing(ocr):
    frames = [np.full((96, 128, 3), 90, np.uint8), np.zeros((1, 1, 3), np.uint8), np.zeros((30, 200, 3), np.uint8)]
    out = ocr.run({"frames": frames})
    assert out["n_text"].tolist() == out["n_tokens"].tolist() == [0, 0, 0] and not out["tokens"].any()
    assert bytes(out["text"][0]).rstrip(b"\0") == b"[]"


@needs_rapidocr
def test_ocr_sizes_and_caps(ocr):
    """Frames of any size in one batch; the same alone; what does not fit is left out whole, the true number stays."""
    frames = [words_frame(0), words_frame(1, size=(480, 200))]
    whole = ocr.run({"frames": frames})
    for i, frame in enumerate(frames):
        alone = ocr.run({"frames": [frame]})
        assert np.array_equal(alone["text"][0], whole["text"][i])
        np.testing.assert_allclose(alone["tokens"][0], whole["tokens"][i], atol=1e-5)
    small = create_network("ocr", "random:0", max_words=2, text_bytes=160, **SMALL_TEXT)
    out = small.run({"frames": frames})
    assert out["text"].shape == (2, 160) and out["tokens"].shape == (2, 2, 384)
    for i in range(2):
        items, kept = unpack_items(whole["text"][i]), unpack_items(out["text"][i])
        assert out["n_text"][i] == len(items) > len(kept) > 0
        assert kept == [k for k in items if k in kept]
        assert min(k["score"] for k in kept) == sorted((k["score"] for k in items), reverse=True)[len(kept) - 1]
    small.keep = ("text", "n_text")
    assert list(small.run({"frames": frames[:1]})) == ["text", "n_text"]


@needs_rapidocr
def test_ocr_needs_no_network_and_only_verified_models(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    net = create_network("ocr", "random:0", **SMALL_TEXT)
    assert net.run({"frames": [words_frame(0)]})["n_text"][0] == 6
    assert net.weights_origin.startswith("package:rapidocr") and net.weights_hash.startswith("sha256:")
    assert (
        net.lineage[0]["dataset"] == "paddleocr" and {"dataset": "random:0", "split": "", "classes": 0} in net.lineage
    )
    other = create_network("ocr", "random:1", **SMALL_TEXT)
    assert other.weights_hash != net.weights_hash
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(tmp_path))
    (tmp_path / "PP-OCRv6_rec_small.onnx").write_bytes(b"another model")
    with pytest.raises(UserError, match="is not the published PP-OCRv6_rec_small.onnx"):
        create_network("ocr", "random:0", **SMALL_TEXT)


@needs_rapidocr
def test_ocr_says_every_setting_itself():
    """A later rapidocr with other defaults must not change a recipe; a setting that it adds fails here."""
    import rapidocr
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(Path(rapidocr.__file__).parent / "config.yaml"))
    own = {"Global.max_side_len", "Det.limit_side_len"}  # options
    own |= {f"{section}.{key}" for section in ("Det", "Cls", "Rec") for key in ("engine_type", "model_path")}
    # which of the library's own models to fetch, and what is drawn: nothing that a given model depends on
    idle = {"ocr_version", "model_type", "lang_type", "task_type", "model_dir", "font_path", "model_root_dir"}
    idle |= {"rec_keys_path"}  # the model carries its characters
    keys = {f"{s}.{key}" for s in ("Global", "Det", "Cls", "Rec") for key in config[s] if key not in idle}
    assert keys - set(_SETTINGS) - own == set()


def test_ocr_spec_and_mistakes(monkeypatch):
    spec = network_spec("ocr")
    assert spec.outputs["text"] == ((8192,), "uint8") and spec.outputs["tokens"] == ((30, 384), "feature")
    assert {"rapidocr", "onnxruntime"} <= set(spec.requires) and "Apache-2.0" in spec.licence
    assert network_spec("ocr", text="bert").outputs["tokens"] == ((30, 768), "feature")
    assert network_spec("ocr", text="bert").recipe() != spec.recipe() != network_spec("ocr", max_side=960).recipe()
    for options, message in (
        ({"text": "i3d_rgb"}, "text='i3d_rgb' reads rgb_clip"),
        ({"max_words": 0}, "max_words must be"),
        ({"text_bytes": 1}, "text_bytes must be"),
        ({"score_threshold": 2}, "between 0 and 1"),
        ({"text_options": {"layers": 99}}, "layers must be 1 to 6"),
    ):
        with pytest.raises(UserError, match=message):
            network_spec("ocr", **options)
    monkeypatch.setattr(packages, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"ocr needs the package rapidocr: pip install 'clipbank\[ocr\]'"):
        create_network("ocr", "random:0")
    with pytest.raises(UserError, match=r"face needs the package dlib: pip install 'clipbank\[face\]'"):
        create_network("face")


@needs_rapidocr
def test_ocr_takes_no_other_models(tmp_path):
    (tmp_path / "mine.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="models are those of the package rapidocr"):
        create_network("ocr", "ppocr_v6_detection")


@needs_rapidocr
def test_ocr_on_real_video(ocr, shared):
    """A scoreboard of a football match, and the clock that a test pattern shows."""
    av = pytest.importorskip("av")
    with av.open(str(shared / "videos" / "msrvtt_video7500.mp4")) as file:
        first = next(file.decode(video=0)).to_ndarray(format="rgb24")
    with av.open(str(shared / "videos" / "odd_vp9.mp4")) as file:
        clock = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)][8]
    out = ocr.run({"frames": [first, clock]})
    assert {"JPN", "NED", "JAPAN", "NETHERLANDS"} <= set(words_of(out["text"][0]))
    assert {"00:00:00.320", "8"} <= set(words_of(out["text"][1]))


# -- face ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["hog", "cnn"])
def face(request):
    return create_network("face", detector=request.param)


CENTRES = ((90, 120), (230, 120))


@needs_dlib
def test_faces_are_found_where_they_are(face):
    out = face.run(
        {"frames": [faces_frame(0), None, np.full((240, 320, 3), 80, np.uint8), np.zeros((9, 30, 3), np.uint8)]}
    )
    assert out["n_boxes"].tolist() == [2, 0, 0, 0] and not out["classes"].any()
    assert out["roi"].shape == (4, 30, 128) and not out["roi"][1:].any() and not out["roi"][0, 2:].any()
    boxes, scores = out["boxes"][0, :2], out["scores"][0, :2]
    assert scores[0] >= scores[1] > 0 and not out["boxes"][0, 2:].any()
    for x, y in CENTRES:
        inside = (boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3])
        assert inside.sum() == 1
    assert ((boxes[:, 2:] - boxes[:, :2]) > 60).all() and ((boxes[:, 2:] - boxes[:, :2]) < 130).all()


@needs_dlib
def test_a_face_is_known_again(face):
    """dlib's own threshold: vectors of one person lie within 0.6; here the same drawing elsewhere, and larger."""
    moved = np.roll(faces_frame(0), (20, 12), (0, 1))
    enlarged = np.array(Image.fromarray(faces_frame(0)).resize((480, 360), Image.Resampling.BICUBIC))
    out = face.run({"frames": [faces_frame(0), moved, enlarged]})
    left = [int(np.argmin(out["boxes"][i, :2, 0])) for i in range(3)]
    vectors = np.stack([out["roi"][i, k] for i, k in enumerate(left)])
    assert np.linalg.norm(vectors[1:] - vectors[0], axis=1).max() < 0.3
    assert 1 < np.linalg.norm(vectors[0]) < 2


@needs_dlib
def test_boxes_are_in_the_pixels_of_the_frame_read(face):
    frame = faces_frame(0)
    large = np.array(Image.fromarray(frame).resize((960, 720), Image.Resampling.BICUBIC))
    reduced = create_network("face", detector=face.spec.options["detector"], max_side=320)
    plain, scaled = face.run({"frames": [frame]}), face.run({"frames": [frame], "sizes": [(960, 720)]})
    np.testing.assert_allclose(scaled["boxes"], 3 * plain["boxes"], rtol=1e-6)
    np.testing.assert_allclose(reduced.run({"frames": [large]})["boxes"][0, :2], scaled["boxes"][0, :2], atol=30)


@needs_dlib
def test_top_and_threshold():
    frame = faces_frame(0)
    one = create_network("face", top=1).run({"frames": [frame]})
    both = create_network("face").run({"frames": [frame]})
    assert one["n_boxes"].tolist() == [2] and np.array_equal(one["roi"][0, 0], both["roi"][0, 0])
    high = create_network("face", score_threshold=float(both["scores"][0, :2].mean())).run({"frames": [frame]})
    assert high["n_boxes"].tolist() == [1]


@needs_dlib
def test_face_weights(monkeypatch, tmp_path):
    for weights in ("random:0", "dlib_resnet_v1", str(tmp_path)):
        with pytest.raises(UserError, match="dlib reads its own models only"):
            create_network("face", weights)
    hog, cnn = create_network("face"), create_network("face", detector="cnn")
    assert hog.weights_hash != cnn.weights_hash and hog.weights_origin == "package:face_recognition_models"
    assert [step["dataset"] for step in cnn.lineage][-1] == "dlib_face_detection_dataset"
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(tmp_path))
    (tmp_path / "mmod_human_face_detector.dat").write_bytes(b"another model")
    with pytest.raises(UserError, match="is not the published mmod_human_face_detector.dat"):
        create_network("face", detector="cnn")


def test_face_spec_and_mistakes():
    spec = network_spec("face")
    assert spec.outputs["roi"] == ((30, 128), "feature") and spec.kind == "detector"
    assert spec.options["upsample"] == 1 and network_spec("face", detector="cnn").options["upsample"] == 0
    for options, message in (
        ({"detector": "ssd"}, "detector must be one of hog, cnn"),
        ({"top": 0}, "top must be"),
        ({"upsample": -1}, "upsample must be"),
        ({"max_side": 10}, "max_side must be"),
    ):
        with pytest.raises(UserError, match=message):
            network_spec("face", **options)


@needs_dlib
def test_a_real_face(face):
    """The portrait that scikit-image carries."""
    found = find_spec("skimage")
    path = Path(found.submodule_search_locations[0], "data", "astronaut.png") if found else None
    if path is None or not path.is_file():
        pytest.skip("package scikit-image, which carries the picture, is not installed")
    frame = np.array(Image.open(path).convert("RGB"))
    out = face.run({"frames": [frame, frame[:, ::-1]]})
    assert out["scores"][0, 0] > 1
    np.testing.assert_allclose(out["boxes"][0, 0], [172, 74, 265, 166], atol=12)
    mirrored = out["boxes"][1, 0][[2, 1, 0, 3]] * [-1, 1, -1, 1] + [512, 0, 512, 0]
    np.testing.assert_allclose(mirrored, out["boxes"][0, 0], atol=16)  # the CNN's cells are wide
    assert np.linalg.norm(out["roi"][0, 0] - out["roi"][1, 0]) < 0.6
    drawn = face.run({"frames": [faces_frame(0)]})["roi"][0, 0]
    assert np.linalg.norm(out["roi"][0, 0] - drawn) > 0.5
