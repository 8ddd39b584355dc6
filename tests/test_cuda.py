"""A GPU gives what the CPU gives: networks, stores, optical flow, heads and base training; and says when it is full.

All of it is skipped where torch sees no CUDA device.
"""

import warnings
from importlib.util import find_spec

import media
import numpy as np
import pytest
import torch
from network_cases import CASES, WEIGHTS, inputs, natural
from retrieval_samples import retrieval_features, run_of
from run_files import curve, metrics_of
from synthetic_stores import all_stores
from tolerances import TOLERANCES

from errors import MachineError
from extract.flow import create_flow
from extract.networks import create_network, network_spec
from extract.weights import RandomWeightsWarning
from heads import get_head, list_heads
from pipelines import Extraction, evaluate, extract, train_head
from pipelines.base_training import train_backbone
from stores import open_store

warnings.simplefilter("ignore", RandomWeightsWarning)
if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device here", allow_module_level=True)

FLOATS = [  # which boxes a detector keeps, and which words are read, may turn on one bit
    case
    for case in CASES
    if network_spec(case.partition("+")[0], **CASES[case]).kind != "detector" and case not in ("ocr", "speech", "face")
]
SQUASHED = 'resize={"mode":"squash","size":32}'


# --- networks ---


def network(case):
    name = case.partition("+")[0]
    if missing := [package for package in network_spec(name, **CASES[case]).requires if find_spec(package) is None]:
        pytest.skip(f"{name} needs {', '.join(missing)}, which this environment lacks")
    return create_network(name, WEIGHTS.get(case, "random:0"), **CASES[case])


def floats(outputs):
    """{name: rows as one vector each} of what is no picture."""
    found = {name: np.concatenate([np.ravel(row) for row in value]) for name, value in outputs.items()}
    return {name: value.astype(np.float64) for name, value in found.items() if value.dtype.kind == "f"}


@pytest.mark.parametrize("case", FLOATS)
def test_networks_in_float32(case):
    net = network(case)
    batch = inputs(net.spec, 3)
    wanted = net.run(batch)
    found = net.to("cuda").run(batch)
    assert found.keys() == wanted.keys()
    for name, value in floats(wanted).items():
        error = np.abs(floats(found)[name] - value).max() / (value.std() or 1.0)
        assert error <= TOLERANCES["fp32"]["golden"], f"{name}: {error:.2g} of std"
    again = net.run(batch)
    assert all(np.array_equal(a, b) for name in found for a, b in zip(found[name], again[name], strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("case", [case for case in FLOATS if case not in ("null", "frames", "flow_images")])
def test_networks_in_half_precision(case, precision):
    net = network(case)
    batch = inputs(net.spec, 2)
    wanted = floats(net.run(batch))
    found = floats(net.to("cuda", precision).run(batch))
    for name, value in wanted.items():
        if value.any():
            cosine = found[name] @ value / np.linalg.norm(found[name]) / np.linalg.norm(value)
            assert cosine >= TOLERANCES[precision]["cosine"], name


@pytest.mark.parametrize("case", [case for case in CASES if case not in FLOATS])
def test_detectors_and_readers_run(case):
    net = network(case).to("cuda")
    outputs = net.run(inputs(net.spec, 2))
    assert all(np.isfinite(row).all() for rows in outputs.values() for row in rows if np.asarray(row).dtype.kind == "f")


def test_raft():
    first = natural((128, 136, 3), 0)
    second = np.roll(first, 2, axis=1)
    flows = [create_flow("raft", device, weights="random:0")(first, second) for device in ("cpu", "cuda:0")]
    np.testing.assert_allclose(*flows, atol=1e-2)


def test_a_full_gpu_is_told():
    net = create_network("i3d_rgb", "random:0", **CASES["i3d_rgb"]).to("cuda")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (16 << 20)) / total)
    try:
        with pytest.raises(MachineError, match="cuda ran out of memory on 64 rows of i3d_rgb: use a smaller"):
            with net.enough_memory(64):
                net.run(inputs(net.spec, 64))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- stores ---


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_extraction(tmp_path, precision):
    (tmp_path / "videos").mkdir()
    for name, n in [("one", 72), ("two", 60)]:
        media.make_video(tmp_path / "videos" / f"{name}.mp4", "libx264", n, options=media.x264(keyint=20))
    (tmp_path / "small.csv").write_text("video,start,stop\none,0.0,1.0\none,0.5,2.0\ntwo,0.2,2.0\n")
    stores = {}
    for device in ("cpu", "cuda"):
        request = Extraction(
            dataset=str(tmp_path / "small.csv"), videos=tmp_path / "videos", features=(tmp_path / device,),
            backbone="tiny3d", weights=("random:0",), precision="fp32" if device == "cpu" else precision,
        )  # fmt: skip
        (report,) = extract(request, device=device, progress=False)
        stores[device] = open_store(report.store)
    rows = np.arange(len(stores["cpu"].rows["clip"]))
    a, b = (stores[device].read("vector", rows).astype(np.float32) for device in ("cpu", "cuda"))
    assert np.abs(a - b).max() <= (2e-3 if precision == "fp32" else 1e-2) * a.std()  # stored as float16


# --- training ---


def losses(run):
    return np.array([row["loss"] for row in curve(run)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", [name for name in list_heads() if "verb" in get_head(name).reads])
def test_clip_heads(tmp_path, head, precision):
    stores = all_stores(tmp_path / "features", videos=8)
    if head == "ipl":
        pytest.skip("these stores have no maps: below")
    stores = {role: store for role, store in stores.items() if role in get_head(head).reads}
    runs = [
        train_head(
            head, **stores, out=tmp_path / device, epochs=3, device=device, progress=False, say=lambda line: None,
            set={"lr": 0.1, "last_lr": 0.01, "batch_size": 8, "precision": precision},
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    np.testing.assert_allclose(*map(losses, runs), rtol=1e-3 if precision == "fp32" else 3e-2)
    found = evaluate(runs[1], device="cuda", progress=False)
    assert found["verb"]["top1"] == pytest.approx(metrics_of(runs[1])["verb"]["top1"])


@pytest.mark.parametrize("head", [name for name in list_heads() if "text" in get_head(name).reads])
def test_retrieval_heads(tmp_path, head):
    features = retrieval_features(tmp_path / "features")
    runs = [run_of(features, tmp_path / device, head, device=device) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*map(losses, runs), rtol=1e-2)


def test_base_training(tmp_path, colours):
    runs = [
        train_backbone(
            "tiny3d", features=[colours / "features"], out=tmp_path / device, target="both", weights="random:0",
            option=[SQUASHED, "clip_len=8", "fps=12.5"], device=device, progress=False, say=lambda line: None,
            set={"epochs": 2, "batch_size": 6, "lr": 0.02, "dropout": 0.0, "last_epochs": 1, "workers": 1},
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    np.testing.assert_allclose(*map(losses, runs), rtol=2e-2)
