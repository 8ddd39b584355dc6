"""Computed optical flow: known motions, signs, 8 bits, clips, and what is said when OpenCV is not whole."""

import json
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import UserError
from extract.flow import (
    METHODS,
    PARAMETERS,
    FlowMethod,
    PairCache,
    compute_flow_clip,
    create_flow,
    flow_recipe,
    quantise,
)
from extract.networks import create_network, network_spec
from extract.weights import RandomWeightsWarning

warnings.simplefilter("ignore", RandomWeightsWarning)
ROOT = Path(__file__).resolve().parents[1]
OPENCV = ("tvl1", "dis")


@pytest.fixture(scope="module")
def methods():
    pytest.importorskip("cv2")
    return {name: create_flow(name) for name in OPENCV}


def picture(x, y):
    """uint8 (h, w, 3) at real-valued coordinates: a texture that can be sampled anywhere, so motion is exact."""
    rng = np.random.default_rng(3)
    value = np.zeros(np.broadcast(x, y).shape)
    for period in (6, 9, 14, 25, 60):
        for angle, phase in rng.uniform(0, 2 * np.pi, (3, 2)):
            value += np.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + phase) * period**0.5
    value = np.clip(128 + 60 * value / value.std(), 0, 255)
    return np.stack([value, 0.8 * value, 255 - value], -1).astype(np.uint8)


def moved(u, v, size=(120, 160)):
    """Two frames, the second of which shows what the first shows moved by u(x, y), v(x, y), and that flow.

    Exact where u and v are affine: `scale` of `expanding`, or constants.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    flow = np.stack(np.broadcast_arrays(u, v, x)[:2], -1)
    return picture(x, y), picture(x - u, y - v), flow


def inside(flow, border=12):
    return flow[border:-border, border:-border]


# -- motions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPENCV)
@pytest.mark.parametrize("u, v", [(2.0, 0.0), (-1.5, 0.0), (0.0, 2.0), (0.0, -1.0), (3.0, -2.5), (0.25, 0.5)])
def test_translations_are_recovered_with_their_signs(methods, name, u, v):
    """u is positive for what moves right, v for what moves down."""
    first, second, flow = moved(u, v)
    found = methods[name](first, second)
    assert found.dtype == np.float32 and found.shape == flow.shape
    error = np.linalg.norm(inside(found - flow), axis=-1)
    assert error.mean() < 0.15, error.mean()
    np.testing.assert_allclose(np.median(inside(found), (0, 1)), (u, v), atol=0.1)


@pytest.mark.parametrize("name", OPENCV)
def test_an_expanding_picture_flows_outwards(methods, name):
    """What was at p is at centre + 1.04 (p - centre): flow 0.04 (p - centre)."""
    y, x = np.mgrid[:120, :160].astype(float)
    cx, cy = 79.5, 59.5
    first, second = picture(x, y), picture(cx + (x - cx) / 1.04, cy + (y - cy) / 1.04)
    flow = 0.04 * np.stack([x - cx, y - cy], -1)
    found = methods[name](first, second)
    assert np.linalg.norm(inside(found - flow), axis=-1).mean() < 0.25
    assert found[60, 130, 0] > 1 > -1 > found[60, 30, 0] and found[100, 80, 1] > 1 > -1 > found[20, 80, 1]


def test_methods_agree_on_a_real_video(methods, shared):
    """TV-L1 and DIS on frames 1/25 s apart: the mean end-point difference is a fraction of a pixel."""
    frames = _frames(shared / "videos" / "kinetics_flipping_a_pancake.mkv", (40, 41), 256, 144)
    one, other = (methods[name](*frames) for name in OPENCV)
    assert np.linalg.norm(one, axis=-1).max() > 0.5
    assert np.linalg.norm(one - other, axis=-1).mean() < 0.3


def _frames(path, wanted, width, height):
    import av

    with av.open(str(path)) as container:
        decoded = enumerate(container.decode(video=0))
        return [f.to_ndarray(format="rgb24", width=width, height=height) for i, f in decoded if i in wanted]


# -- the same everywhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPENCV)
def test_threads_change_nothing(methods, name):
    """One method shared by threads, whatever number of threads OpenCV takes itself."""
    import cv2

    pairs = [moved(u, 1.0)[:2] for u in (-2.0, 0.5, 4.0, 7.0)]
    alone = [methods[name](*pair) for pair in pairs]
    found = [None] * len(pairs)
    before = cv2.getNumThreads()
    try:
        for own in (1, 3):
            cv2.setNumThreads(own)

            def work(i):
                found[i] = [methods[name](*pairs[i]) for _ in range(2)]

            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pairs))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(np.array_equal(a, b) for a, both in zip(alone, found, strict=True) for b in both)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("name", OPENCV)
@pytest.mark.parametrize("size", [(8, 40), (33, 17), (16, 16)])
def test_small_and_odd_frames(methods, name, size):
    first, second, _ = moved(0.5, 0.0, size)
    found = methods[name](first, second)
    assert found.shape == (*size, 2) and np.isfinite(found).all()
    assert not methods[name].batch(first[None][:0], second[None][:0]).size


def test_wrong_frames_are_named(methods):
    frame = np.zeros((20, 20, 3), np.uint8)
    for wrong in (frame[:10], frame.astype(np.float32), frame[..., :1]):
        with pytest.raises(ValueError, match=r"pairs of uint8 \(h, w, 3\)"):
            methods["dis"](frame, wrong)


# -- RAFT --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raft():
    return create_flow("raft", weights="random:0")


@pytest.mark.parametrize("size", [(128, 136), (130, 141), (40, 200)])
def test_raft_pads_and_crops_back(raft, size):
    first, second, _ = moved(2.0, 1.0, size)
    found = raft(first, second)
    assert found.shape == (*size, 2) and found.dtype == np.float32 and np.isfinite(found).all()
    assert found.std() > 0.1 and np.abs(found).max() < 100
    assert np.array_equal(found, raft(first, second))


def test_raft_pads_evenly_by_the_edges(raft):
    """A frame whose size RAFT does not take is the middle of one that it takes."""
    first, second, _ = moved(2.0, 1.0, (125, 130))
    both = [np.pad(frame, ((1, 2), (3, 3), (0, 0)), mode="edge") for frame in (first, second)]
    assert np.array_equal(raft(first, second), raft(*both)[1:-2, 3:-3])


def test_raft_takes_batches(raft):
    pairs = [moved(u, 1.0, (128, 128))[:2] for u in (1.0, -3.0)]
    found = raft.batch(*(np.stack(frames) for frames in zip(*pairs, strict=True)))
    for flow, pair in zip(found, pairs, strict=True):
        np.testing.assert_allclose(flow, raft(*pair), atol=1e-2)


def test_raft_reads_frames_as_torchvision_does(raft):
    from torchvision.models.optical_flow import Raft_Large_Weights

    first, second, _ = moved(2.0, 1.0, (128, 128))
    preset = Raft_Large_Weights.C_T_SKHT_V2.transforms()
    images = preset(*(torch.from_numpy(frame).permute(2, 0, 1)[None] for frame in (first, second)))
    with torch.inference_mode():
        theirs = raft.network.module(*images)[-1][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(raft(first, second), theirs, atol=1e-3)


def test_raft_weights(raft, tmp_path):
    """The published layout loads; another architecture is named; published weights are those of torchvision."""
    from torchvision.models.optical_flow import Raft_Large_Weights

    from extract.weights import TABLE

    entry = TABLE["raft_large.sintel"]
    assert entry.url == Raft_Large_Weights.C_T_SKHT_V2.url and entry.hash[7:15] in entry.url
    path = tmp_path / "raft.pth"
    torch.save(raft.network.module.state_dict(), path)
    again = create_flow("raft", weights=str(path))
    pair = moved(1.0, 0.0, (128, 128))[:2]
    assert np.array_equal(again(*pair), raft(*pair))
    assert flow_recipe("raft", str(path))["parameters"]["weights"] == again.network.weights_hash
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="not a checkpoint of raft_large; 154 keys missing"):
        create_flow("raft", weights=str(path))
    with pytest.raises(UserError, match="no CUDA device|CUDA devices, from cuda:0"):
        create_flow("raft", device="cuda:99", weights="random:0")


# -- 8 bits ------------------------------------------------------------------------------------------------------------


def test_quantise_is_i3ds(shared):
    table = json.loads((shared / "golden" / "preprocess_values.json").read_text())["flow_i3d_8bit"]["values"]
    pixels = np.array([float(value) for value in table])
    assert quantise(pixels).tolist() == [stored for stored, _ in table.values()]


def test_the_network_reads_back_what_was_stored():
    net = create_network("tiny3d", "random:0")  # any network can carry I3D's mapping of flow
    net.spec = network_spec("i3d_flow", flow_bound=20.0, flow_scale=1.0)
    pixels = np.random.default_rng(0).uniform(-19.9, 19.9, (1, 2, 5, 7, 2)).astype(np.float32)
    read = net.normalise(torch.from_numpy(quantise(pixels))).movedim(1, -1).numpy() * 20
    assert np.abs(read - pixels).max() <= 20 / 255 + 1e-5
    everything = np.arange(256, dtype=np.uint8)
    assert np.array_equal(quantise((everything / 255 * 2 - 1) * 20), everything)
    assert quantise(np.array([0.0, 1e9, -1e9])).tolist() == [128, 255, 0]
    assert quantise(np.array([12.5]), bound=25.0).tolist() == quantise(np.array([10.0])).tolist()
    with pytest.raises(ValueError, match="not finite"):
        quantise(np.array([np.nan]))


# -- clips -------------------------------------------------------------------------------------------------------------


class Counting(FlowMethod):
    """Flow that says which frames it was given: u = the first's value, v = the second's."""

    name = "counting"

    def __init__(self, pairs_at_once):
        self.pairs_at_once = pairs_at_once
        self.batches = []

    def compute(self, first, second):
        self.batches.append([(int(a[0, 0, 0]), int(b[0, 0, 0])) for a, b in zip(first, second, strict=True)])
        return np.stack([first[..., 0], second[..., 0]], -1).astype(np.float32) - 10


def flat(*values):
    return np.stack([np.full((4, 5, 3), value, np.uint8) for value in values])


def test_clip_pairs_frames_and_skips_equal_ones():
    method = Counting(2)
    flow = compute_flow_clip(method, flat(1, 2, 5, 5, 3, 4, 5, 6))
    assert method.batches == [[(1, 2), (3, 4)], [(5, 6)]]
    assert flow.dtype == np.uint8 and flow.shape == (4, 4, 5, 2)
    assert flow[:, 0, 0].tolist() == quantise(np.array([[-9, -8], [0, 0], [-7, -6], [-5, -4]])).tolist()
    with pytest.raises(ValueError, match="pairs"):
        compute_flow_clip(method, flat(1, 2, 3))


def test_overlapping_clips_compute_a_pair_once():
    method = Counting(8)
    cache = PairCache(method, keep=3)
    first = cache.clip([0, 1, 2, 3, 2, 3], flat(0, 1, 2, 3, 2, 3))
    second = cache.clip(np.array([2, 3, 4, 5]), flat(2, 3, 4, 5))
    assert method.batches == [[(0, 1), (2, 3)], [(4, 5)]]
    assert np.array_equal(first, compute_flow_clip(Counting(1), flat(0, 1, 2, 3, 2, 3)))
    assert np.array_equal(second, compute_flow_clip(Counting(1), flat(2, 3, 4, 5)))
    long = cache.clip(range(10), flat(*range(10)))  # longer than what is kept
    assert np.array_equal(long, compute_flow_clip(Counting(1), flat(*range(10))))
    assert method.batches[-1] == [(6, 7), (8, 9)] and len(cache._flow) == 3


@pytest.mark.parametrize("name", OPENCV)
def test_no_motion_is_128(methods, name):
    still = picture(*np.mgrid[:64, :48].astype(float)[::-1])
    assert (compute_flow_clip(methods[name], np.stack([still, still])) == 128).all()
    assert (quantise(methods[name](still, still)) == 128).all()


# -- recipes and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_recipe_is_plain_json(name):
    pytest.importorskip("cv2")
    recipe = flow_recipe(name)
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["method"] == name and recipe["rule"] == 1 and recipe["step_s"] == 0.04 and recipe["bound"] == 20
    assert all(len(version.split(".")) == 2 for version in recipe["library"].values())
    if name == "raft":
        assert recipe["parameters"]["weights"].startswith("sha256:ff5fadd5")
        assert flow_recipe(name, "random:7")["parameters"] != recipe["parameters"]


def test_tvl1_runs_with_the_parameters_of_its_recipe(methods):
    own, wanted = methods["tvl1"].make(), PARAMETERS["tvl1"]
    found = [own.getTau(), own.getLambda(), own.getTheta(), own.getScalesNumber(), own.getWarpingsNumber()]
    found += [own.getEpsilon(), own.getInnerIterations(), own.getOuterIterations(), own.getScaleStep()]
    assert [*found, own.getGamma(), own.getMedianFiltering()] == list(wanted.values())
    assert (wanted["tau"], wanted["lambda"], wanted["theta"], wanted["scales"], wanted["warps"]) == (
        0.25,
        0.15,
        0.3,
        5,
        5,
    )


def test_wrong_use_is_named():
    for call in (create_flow, flow_recipe):
        with pytest.raises(UserError, match="one of tvl1, dis, raft, got 'farneback'"):
            call("farneback")
    with pytest.raises(UserError, match="has no weights"):
        create_flow("tvl1", weights="random:0")


def test_missing_and_overwritten_opencv(monkeypatch):
    """Without OpenCV, and where another opencv package lies over contrib's folder: cv2.optflow without functions."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'clipbank\[flow\]'"):
        create_flow("dis")
    for optflow in ({}, {"optflow": types.ModuleType("optflow")}):
        half = types.ModuleType("cv2")
        half.__version__ = "5.0.0"
        vars(half).update(optflow)
        monkeypatch.setitem(sys.modules, "cv2", half)
        with pytest.raises(UserError, match="--force-reinstall --no-deps opencv-contrib-python-headless"):
            flow_recipe("tvl1")
        assert flow_recipe("dis")["library"] == {"opencv": "5.0"}  # DIS is in OpenCV itself


def test_importing_costs_neither_opencv_nor_torch():
    code = "import sys, extract.flow; assert not {'cv2', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# -- networks that store their input -----------------------------------------------------------------------------------


def test_stored_flow_images_are_the_input():
    options = {"clip_len": 4, "resize": {"mode": "squash", "size": 8}}
    net = create_network("flow_images", **options)
    assert net.keep == ("flow",) and net.spec.outputs == {"flow": ((4, 8, 8, 2), "uint8")}
    assert net.weights_hash == create_network("flow_images", **options).weights_hash
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 2)).astype(np.uint8)
    out = net.run({"frames": [frames[0], None, frames[1]]})["flow"]
    assert out.dtype == np.uint8 and np.array_equal(out[[0, 2]], frames) and not out[1].any()
    with pytest.raises(ValueError, match="must be uint8"):
        net.run({"frames": [frames[0][:3]]})
    with pytest.raises(UserError, match="frames of one size"):
        network_spec("flow_images", resize={"mode": "none"})
