"""VGGish and the spectrograms: golden vectors, checkpoints, post-processing, real sound."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from network_cases import inputs, waveform
from tolerances import TOLERANCES

from errors import UserError
from extract.audio import NoAudio, open_audio
from extract.networks import create_network, network_spec
from extract.networks.spectrograms import (
    TBN_SAMPLES,
    examples,
    log_mel,
    mel_matrix,
    stft_magnitude,
    tbn_log_spectrogram,
)
from extract.networks.vggish import PCA
from extract.networks.vggish_model import read_pca
from extract.weights import TABLE, RandomWeightsWarning, load_into, random_value

warnings.simplefilter("ignore", RandomWeightsWarning)


@pytest.fixture(scope="module")
def rule(shared):
    """The module that defines the golden inputs and compares with the golden values."""
    sys.path.insert(0, str(shared / "golden"))
    try:
        import fill_weights
    finally:
        sys.path.pop(0)
    return fill_weights


@pytest.fixture(scope="module")
def golden_wave(rule):
    return torch.from_numpy(rule.wave_input("vggish/wave", 52321).astype(np.float32))[None]


@pytest.fixture(scope="module")
def plain():
    return create_network("vggish", "random:0", relu=False)


@pytest.fixture(scope="module")
def posted(plain):
    """The same weights with the post-processing; not filled again, for that takes seconds."""
    net = network_spec("vggish", post=True).build()
    net.module.load_state_dict(plain.module.state_dict() | {k: torch.from_numpy(v) for k, v in pca_arrays().items()})
    return net


# -- spectrograms ------------------------------------------------------------------------------------------------------


def test_tbn_spectrogram_golden(shared, rule):
    wave = torch.from_numpy(rule.wave_input("tbn/wave", TBN_SAMPLES, 24000).astype(np.float32))
    ours = tbn_log_spectrogram(torch.stack([wave.flip(0), wave]))
    assert ours.shape == (2, 256, 256) and ours.dtype == torch.float32
    rule.check(str(shared / "golden" / "tbn_spectrogram"), "clip", {"log_spec": ours[1].numpy()}, rtol=1e-5)


def test_vggish_front_end_golden(shared, rule, golden_wave):
    mel = log_mel(golden_wave)
    assert mel.dtype == torch.float32
    ours = {
        "stft_magnitude": stft_magnitude(golden_wave)[0].numpy(),
        "mel_matrix": mel_matrix(),
        "log_mel": mel[0].numpy(),
        "examples": examples(mel).numpy(),
    }
    rule.check(str(shared / "golden" / "vggish"), "frontend", ours)


@pytest.mark.parametrize("samples, frames", [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (15599, 95), (15600, 96)])
def test_lengths_of_the_front_end(samples, frames):
    mel = log_mel(torch.ones(2, samples))
    assert mel.shape == (2, frames, 64) and examples(mel).shape == (2 * (frames // 96), 96, 64)


def test_rows_of_a_long_sound_are_its_windows():
    """What one pass over a whole sound gives is what windows of 15,600 samples every 15,360 give."""
    wave = torch.from_numpy(waveform(15360 * 3 + 240, 16000, 5))[None]
    windows = wave.unfold(1, 15600, 15360)[0]
    assert torch.equal(examples(log_mel(wave)), examples(log_mel(windows)))


# -- VGGish ------------------------------------------------------------------------------------------------------------


def test_vggish_golden_on_the_waveform(shared, rule, golden_wave, plain):
    """The whole chain in float32, stage by stage, from the waveform to the embedding."""
    found, path = {}, str(shared / "golden" / "vggish")
    published = json.loads((shared / "golden" / "vggish.json").read_text())
    state = plain.module.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {k: shape for k, shape, _ in published["state_dict"]}
    assert rule.weights_crc32(state) == published["weights_crc32"]
    assert published["tolerance"] == TOLERANCES["fp32"]["golden"]
    names = {"features.1": "conv1_relu", "features.5": "pool2", "features.15": "pool4"}
    names |= {"embeddings.1": "fc1_relu", "embeddings.3": "fc2_relu", "embeddings.4": "embedding_pre"}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, name=names[key]: found.update({name: out.clone()}))
        for key, layer in plain.module.named_modules()
        if key in names
    ]
    with plain.inference():
        plain.module(examples(log_mel(golden_wave))[:, None])
    for hook in hooks:
        hook.remove()
    found = {name: value.numpy() for name, value in found.items()}
    rule.check(path, "net", found | {"embedding": found["embedding_pre"].clip(0)})


def test_vggish_run_is_the_golden_chain(shared, rule, golden_wave, plain, posted):
    rows = list(golden_wave.unfold(1, 15600, 15360)[0].numpy())
    pre = plain.run({"waveforms": rows})["vector"]
    rule.check(str(shared / "golden" / "vggish"), "net", {"embedding_pre": pre, "embedding": pre.clip(0)})
    code = posted.run({"waveforms": rows})["vector"]
    expected = posted.module.postprocess(torch.from_numpy(pre.clip(0))).numpy()
    assert np.abs(code - expected).max() <= 1 and (code != expected).mean() < 0.01
    assert np.array_equal(code, np.round(code)) and code.min() >= 0 and code.max() <= 255


def test_post_processing_golden(shared, rule, posted):
    embedding = torch.from_numpy(rule.matrix_input("vggish/emb", (5, 128)))
    for rows in (slice(0, 5), slice(2, 3)):
        ours = posted.module.postprocess(embedding[rows]).numpy()
        if len(ours) == 5:
            rule.check(str(shared / "golden" / "vggish"), "postprocess", {"quantized": ours})
            whole = ours
        assert np.array_equal(ours, whole[rows])


def test_spec():
    spec = network_spec("vggish")
    assert (spec.reads, spec.fps, spec.clip_len, spec.hop, spec.unit_rows) == ("waveform", 16000.0, 15600, 15360, 4096)
    assert spec.outputs == {"vector": ((128,), "feature")} and spec.family == "vggish"
    assert spec.options == {"relu": True, "post": False}
    assert network_spec("vggish", relu=False).recipe() != spec.recipe() != network_spec("vggish", post=True).recipe()


def test_failed_rows_silence_and_wrong_input(plain):
    batch = inputs(plain.spec, 3)
    whole = plain.run(batch)["vector"]
    holed = plain.run({"waveforms": [None, *batch["waveforms"][1:]]})["vector"]
    assert not holed[0].any()
    assert np.abs(holed[1:] - whole[1:]).max() <= TOLERANCES["fp32"]["neighbour"] * whole.std()
    silence = plain.run({"waveforms": [np.zeros(15600, np.float32), whole_noise(), np.zeros(15600, np.float32)]})
    assert np.allclose(silence["vector"][0], silence["vector"][2], atol=1e-5) and silence["vector"][0].std() > 0.1
    with pytest.raises(ValueError, match=r"waveforms\[0\] must be float32 \(15600\), got float32 \(15599,\)"):
        plain.run({"waveforms": [np.zeros(15599, np.float32)]})


def whole_noise():
    return waveform(15600, 16000, 9)


def test_bf16_stays_close(plain):
    batch = inputs(plain.spec, 2)
    full = plain.run(batch)["vector"]
    half = plain.to("cpu", "bf16").run(batch)["vector"]
    plain.to("cpu", "fp32")
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() >= TOLERANCES["bf16"]["cosine"]


# -- weights -----------------------------------------------------------------------------------------------------------


def pca_arrays():
    return {
        "pca_eigen_vectors": random_value("pca_eigen_vectors", (128, 128)),
        "pca_means": random_value("pca_means", (128, 1)),
    }


@pytest.fixture
def checkpoint(tmp_path, plain):
    """A file with the keys and shapes of the published checkpoint: 275 MB."""
    path = tmp_path / "vggish.pth"
    torch.save(plain.module.state_dict(), path)
    yield path
    path.unlink()


def test_checkpoint_and_pca_load(tmp_path, monkeypatch, checkpoint, plain, posted):
    row = {"waveforms": [whole_noise()]}
    loaded = create_network("vggish", str(checkpoint), relu=False)
    assert np.array_equal(loaded.run(row)["vector"], plain.run(row)["vector"])
    alone = loaded.weights_hash
    del loaded

    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save({k: v.reshape(-1) if k == "pca_means" else v for k, v in pca_arrays().items()},
               folder / TABLE[PCA].filename)  # fmt: skip
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(folder))
    with pytest.raises(UserError, match="is not the published"):
        create_network("vggish", str(checkpoint), post=True)
    monkeypatch.setattr("extract.weights._check_hash", lambda path, entry: None)
    loaded = create_network("vggish", str(checkpoint), post=True)
    assert np.array_equal(loaded.run(row)["vector"], posted.run(row)["vector"])
    assert loaded.weights_hash not in ("", alone) and loaded.weights_origin == "file:vggish.pth"


def test_the_post_processor_may_be_in_the_checkpoint(plain, posted):
    """A whole torchvggish model as saved by its users: `pproc.pca_means` beside the network's own keys."""
    state = {f"pproc.{k}" if k.startswith("pca") else k: v for k, v in posted.module.state_dict().items()}
    assert set(posted.adapt_to(posted.convert_state(state))) == set(posted.module.state_dict())
    assert set(plain.adapt_to(plain.convert_state(state))) == set(plain.module.state_dict())


def test_pca_files(tmp_path):
    arrays = pca_arrays()
    np.savez(tmp_path / "pca.npz", pca_eigen_vectors=arrays["pca_eigen_vectors"], pca_means=arrays["pca_means"][:, 0])
    torch.save(arrays, tmp_path / "arrays.pth")
    torch.save({k: v.astype(np.float64) for k, v in arrays.items()}, tmp_path / "doubles.pth")
    torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, tmp_path / "tensors.pth")
    for name in ("pca.npz", "arrays.pth", "doubles.pth", "tensors.pth"):
        found = read_pca(tmp_path / name)
        assert all(found[k].dtype == torch.float32 and np.array_equal(found[k], arrays[k]) for k in arrays), name
    torch.save({"pca_means": torch.zeros(128)}, tmp_path / "half.pth")
    torch.save({"pca_means": Evil()}, tmp_path / "evil.pth")
    for name in ("half.pth", "evil.pth"):
        with pytest.raises(UserError, match="is not the PCA of VGGish"):
            read_pca(tmp_path / name)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_another_networks_checkpoint_is_named_key_by_key(tmp_path, plain):
    state = {k: v for k, v in plain.module.state_dict().items() if k.startswith("features")}
    state["conv.weight"] = state.pop("features.0.weight")
    state["embeddings.4.bias"] = torch.zeros(64)
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        load_into(plain, str(path))
    for part in ("6 keys missing: embeddings.0.bias", "conv.weight", "embeddings.4.bias is (64,), expected (128,)"):
        assert part in str(error.value)


# -- real sound --------------------------------------------------------------------------------------------------------


def test_real_sound_gives_different_features(shared, plain):
    silent = 0
    for path in sorted((shared / "videos").glob("*.m[pk][4v]")):
        try:
            source = open_audio(path, 16000)
        except NoAudio:
            continue
        with source:
            rows = [source.read(k * 0.96, k * 0.96 + 0.975)[0] for k in (0, 1)]
        found = plain.run({"waveforms": rows})["vector"]
        if not np.any(rows):
            silent += 1
            assert np.allclose(found[0], found[1], atol=1e-5)
        else:
            assert np.abs(found[0] - found[1]).max() > 0.1 * found.std(), path.name
    assert silent == 1  # the Ego4D clip's sound was taken out
