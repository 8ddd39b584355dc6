"""T2VLAD against the authors' release, against eq. 6.1 to 6.4 written out anew, and against padding."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from errors import UserError
from heads import create_head
from heads.t2vlad import T2VLADConfig

WIDTH, WORDS = 12, 10
EXPERTS = {"audio": 5, "ocr": 7, "rgb": 9}
LENGTHS = {"audio": (4, 1, 0, 3, 0), "ocr": (0, 2, 0, 1, 5), "rgb": (6, 3, 0, 1, 2)}  # the third video has nothing
TEXT = (10, 3, 1, 5, 7)
SWITCHES = [
    {},
    {"self_attention": False},
    {"vlad": "separate"},
    {"vlad": "text"},
    {"local": False},
    {"assignment": "batch_norm", "separate_norms": True},
    {"width": 8, "separate_norms": True, "negatives": 2, "video_trains_centres": False},
]


def make_head(**changes):
    torch.manual_seed(0)
    sizes = {"text_channels": WIDTH, "experts": tuple(EXPERTS), "expert_channels": tuple(EXPERTS.values())}
    head = create_head("t2vlad", **{**sizes, "clusters": 4, "dropout": 0.0, **changes})
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):  # zeros would hide them
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    for name, buffer in head.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.3, 0.9)
    return head


def make_batch(seed=0, more=0, padding=0.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def sequence(lengths, channels):
        length = max(1, max(lengths))
        values = torch.full((len(lengths), length + more, channels), padding, dtype=dtype)
        mask = torch.arange(length + more) < torch.tensor(lengths)[:, None]
        drawn = torch.randn(len(lengths), length, channels, generator=g, dtype=torch.float64).to(dtype)
        values[:, :length] = torch.where(mask[:, :length, None], drawn, values[:, :length])
        return values, mask

    batch = {}
    for role, lengths, channels in [("text", TEXT, WIDTH)] + [(n, LENGTHS[n], c) for n, c in EXPERTS.items()]:
        values, mask = sequence(lengths, channels)
        batch[role] = {"tokens" if role in ("text", "ocr") else "vector": values, "mask": mask}
    return batch


# --- eq. 6.1 to 6.4 once more: one pair, one token and one centre at a time, no padding anywhere ---


def linear(p, name, x):
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def layer_norm(p, name, x):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def unit(x):
    return x / x.norm()


def attended(p, tokens, heads):
    """One pre-norm transformer layer over a list of tokens."""
    normed = [layer_norm(p, "context.layer.norm1", x) for x in tokens]
    width = len(tokens[0])
    rows = p["context.layer.self_attn.in_proj_weight"].split(width)
    biases = p["context.layer.self_attn.in_proj_bias"].split(width)
    query, key, value = ([w @ x + b for x in normed] for w, b in zip(rows, biases, strict=True))
    size, out = width // heads, []
    for i, x in enumerate(tokens):
        seen = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = torch.stack([query[i][part] @ k[part] for k in key]) / size**0.5
            seen.append(sum(a * v[part] for a, v in zip(scores.softmax(0), value, strict=True)))
        x = x + linear(p, "context.layer.self_attn.out_proj", torch.cat(seen))
        hidden = linear(p, "context.layer.linear1", layer_norm(p, "context.layer.norm2", x)).clamp(min=0)
        out.append(x + linear(p, "context.layer.linear2", hidden))
    return out


def gathered(p, name, tokens, bias):
    """Eq. 6.1 to 6.3 of a list of tokens: K vectors of length 1; zeros without tokens."""
    centres, residual = p[f"{name}.centres"], p[f"{name}.residual_centres"]
    out = [torch.zeros_like(c) for c in residual]
    for z in tokens:
        dots = torch.stack([z @ c for c in centres]) + bias
        a = dots.exp() / dots.exp().sum()
        out = [g + a[j] * (z - residual[j]) for j, g in enumerate(out)]
    return [unit(g) if len(tokens) else g for g in out]


def gated(p, name, x):
    y = linear(p, f"{name}.fc", x)
    gate = linear(p, f"{name}.gate", y)
    gate = (gate - p[f"{name}.norm.running_mean"]) / (p[f"{name}.norm.running_var"] + 1e-5).sqrt()
    gate = gate * p[f"{name}.norm.weight"] + p[f"{name}.norm.bias"]
    return unit(y / (1 + (-gate).exp()))


def similarity_of_pair(p, config, words, experts):
    """s of one text and one video: words a list of (C,), experts a list of lists of (C_n,)."""
    named = config.separate_norms and config.vlad == "shared"

    def bias_of(kind, name="vlad"):
        return p[f"{name}.norms.{kind if named else 'all'}.bias"]

    if config.width and config.width != config.text_channels:
        words = [linear(p, "text_project", x) for x in words]
    of_text = gathered(p, "vlad", words, bias_of("text"))
    segments = [unit(linear(p, f"context.project.{n}.fc", x)) for n, tokens in enumerate(experts) for x in tokens]
    if config.self_attention and segments:
        segments = attended(p, segments, config.attention_heads)
    segments = [layer_norm(p, "context.norm", x) for x in segments]
    if config.vlad == "text":
        projected = linear(p, "video_project", torch.stack(segments).amax(0)) if segments else torch.zeros(1)
        local = torch.cat(of_text) @ unit(projected) / len(of_text) ** 0.5 if segments else torch.zeros(())
    else:
        name = "video_vlad" if config.vlad == "separate" else "vlad"
        of_video = gathered(p, name, segments, bias_of("video", name))
        local = sum(a @ b for a, b in zip(of_text, of_video, strict=True)) / len(of_text)
    concatenated = torch.cat(of_text) / len(of_text) ** 0.5
    weights = linear(p, "mixture.weigh", concatenated).softmax(0)
    there = [n for n, tokens in enumerate(experts) if tokens]
    cosines = {
        n: gated(p, f"mixture.text_units.{n}", concatenated)
        @ gated(p, f"mixture.video_units.{n}", torch.stack(experts[n]).amax(0))
        for n in there
    }
    total = sum(weights[n] for n in there)
    s_global = sum(weights[n] / total * cosines[n] for n in there) if there else torch.zeros(())
    return {"both": (s_global + local) / 2, "local": local, "global": s_global}


def pieces(batch):
    """(words of every text, experts' tokens of every video), without padding."""
    text = batch["text"]
    words = [list(x[m]) for x, m in zip(text["tokens"], text["mask"], strict=True)]
    videos = []
    for b in range(len(TEXT)):
        videos.append([list(next(iter(batch[name].values()))[b][batch[name]["mask"][b]]) for name in EXPERTS])
    return words, videos


@pytest.mark.parametrize("changes", [s for s in SWITCHES if "assignment" not in s and s.get("local", True)])
@pytest.mark.parametrize("score", ["both", "local", "global"])
def test_equations(changes, score):
    head, batch = make_head(score=score, **changes).double().eval(), make_batch(dtype=torch.float64, padding=3.0)
    p = dict(head.named_parameters()) | dict(head.named_buffers())
    words, videos = pieces(batch)
    ours = head(batch)["similarity"]
    theirs = torch.stack(
        [torch.stack([similarity_of_pair(p, head.config, w, v)[score] for v in videos]) for w in words]
    )
    assert torch.allclose(ours, theirs, atol=1e-5)
    mixing = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    own, other = (
        torch.autograd.grad((s * mixing).sum(), list(head.parameters()), allow_unused=True) for s in (ours, theirs)
    )
    for (name, _), a, b in zip(head.named_parameters(), own, other, strict=True):
        if not head.config.video_trains_centres and name == "vlad.centres":
            continue  # held back on the video's side: its own test below
        a, b = (torch.zeros(1) if g is None else g for g in (a, b))
        assert torch.allclose(a, b.expand_as(a), atol=1e-5), name


def test_gradients_reach_the_words_and_only_words_move_released_centres():
    head, batch = make_head(video_trains_centres=False).eval(), make_batch()
    batch["text"]["tokens"].requires_grad_()
    text = {k: v.detach() for k, v in head.encode_text(batch["text"]).items()}
    head.similarity(text, head.encode_video(batch)).sum().backward()
    assert head.vlad.centres.grad is None and head.vlad.residual_centres.grad.any()
    head(batch)["similarity"].sum().backward()
    assert head.vlad.centres.grad.any()
    grad = batch["text"]["tokens"].grad
    assert (grad.abs().sum(-1) > 0).equal(batch["text"]["mask"])


# --- padding, blocks, missing experts ---


@pytest.mark.parametrize("changes", SWITCHES)
@pytest.mark.parametrize("training", [False, True])
def test_masked_words_and_padded_segments_change_nothing(changes, training):
    head, batch = make_head(**changes).train(training), make_batch()
    out = head(batch)
    for more, padding in ((0, float("nan")), (3, 0.0), (2, float("nan"))):
        head = make_head(**changes).train(training)
        again = head(make_batch(more=more, padding=padding))
        for name in out:
            assert torch.allclose(out[name], again[name], atol=1e-6), name
        head.loss(again).backward()
        assert all(x.grad is None or torch.isfinite(x.grad).all() for x in head.parameters())


@pytest.mark.parametrize("changes", SWITCHES)
def test_similarity_by_blocks_is_the_full_matrix(changes):
    head, batch = make_head(**changes).eval(), make_batch()
    full = head(batch)["similarity"]
    text, video = head.encode_text(batch["text"]), head.encode_video(batch)

    def part(embedded, rows):
        return {name: value[rows] for name, value in embedded.items()}

    one_text = {"tokens": batch["text"]["tokens"][1:2, :3], "mask": batch["text"]["mask"][1:2, :3]}
    assert torch.allclose(head.similarity(head.encode_text(one_text), video), full[1:2], atol=1e-6)
    for rows in (slice(0, 2), slice(2, 5)):
        for columns in (slice(0, 1), slice(1, 5)):
            block = head.similarity(part(text, rows), part(video, columns))
            assert torch.allclose(block, full[rows, columns], atol=1e-6)


def test_a_video_without_anything_is_like_no_text_and_others_weights_add_up():
    head, batch = make_head().eval(), make_batch()
    similarity = head(batch)["similarity"]
    assert torch.equal(similarity[:, 2], torch.zeros(5)) and (similarity[:, [0, 1, 3, 4]] != 0).all()
    text, video = head.encode_text(batch["text"]), head.encode_video(batch)
    assert video["present"].tolist() == [[bool(LENGTHS[n][b]) for n in EXPERTS] for b in range(5)]
    # All cosines 1: the weights alone.
    alike = {"experts": text["experts"], "present": video["present"]}
    agreeing = make_head(score="global").eval().similarity(text, alike).diagonal()
    assert torch.allclose(agreeing, torch.tensor([1.0, 1, 0, 1, 1]))


def test_scores_of_the_test_are_those_of_one_training():
    batch = make_batch()
    heads = {score: make_head(score=score).eval() for score in ("both", "local", "global")}
    found = {score: head(batch)["similarity"] for score, head in heads.items()}
    assert torch.allclose(found["both"], (found["local"] + found["global"]) / 2)
    trained = [head.train()(batch)["similarity"] for head in heads.values()]  # in training all are alike
    assert torch.equal(trained[0], trained[1]) and torch.equal(trained[0], trained[2])


def test_switches_change_what_they_name_and_nothing_else():
    keys = {str(s): set(make_head(**s).state_dict()) for s in SWITCHES}
    full = keys[str({})]

    def groups(names):
        return {name.split(".")[0] for name in names}

    assert full - keys[str({"self_attention": False})] == {k for k in full if k.startswith("context.layer.")}
    assert groups(keys[str({"vlad": "separate"})] - full) == {"video_vlad"}
    assert groups(keys[str({"vlad": "text"})] - full) == {"video_project"}
    assert groups(keys[str({"local": False})]) == {"mixture"}
    same = make_head(local=False).eval()
    batch, other = make_batch(), make_batch(seed=5)
    other["text"]["tokens"][:, 0] = batch["text"]["tokens"][:, 0]  # [CLS] is all that it hears of a text
    assert torch.equal(same.encode_text(batch["text"])["experts"], same.encode_text(other["text"])["experts"])


def test_assignments_are_told_for_pictures():
    head, batch = make_head().eval(), make_batch()
    out = head.assignments(batch)
    assert list(out) == ["text", *EXPERTS]
    for name, assigned in out.items():
        mask = batch[name]["mask"]
        assert assigned.shape == (*mask.shape, 5)
        assert torch.allclose(assigned.sum(-1), mask.float(), atol=1e-6)
    gathered_again = torch.nn.functional.normalize(
        sum(
            out["text"][:, i, :4, None] * (batch["text"]["tokens"][:, i, None] - head.vlad.residual_centres)
            for i in range(WORDS)
        ),
        dim=-1,
    )
    assert torch.allclose(gathered_again.flatten(1) / 2, head.encode_text(batch["text"])["local"], atol=1e-5)
    with pytest.raises(UserError, match="share no centres"):
        make_head(vlad="text").assignments(batch)


@pytest.mark.parametrize("changes", [{}, {"vlad": "separate"}, {"preset": "released", "padded": (14, 9, 9, 9)}])
def test_assignments_are_those_that_the_embeddings_gather_by(changes):
    head, batch, gathered_by = make_head(**changes).eval(), make_batch(more=1), []
    for vlad in {head.vlad, head.video_vlad or head.vlad}:

        def recorded(*arguments, assign=vlad.assign):
            gathered_by.append(assign(*arguments))
            return gathered_by[-1]

        vlad.assign = recorded
    head.encode_text(batch["text"])
    head.encode_video(batch)
    words, segments = gathered_by
    assigned = head.assignments(batch)
    lengths = head.config.padded or tuple(part["mask"].shape[1] for part in batch.values())
    assert (words.shape[1], segments.shape[1]) == (lengths[0], sum(lengths[1:]))
    for name, whole in zip(("text", *EXPERTS), (words, *segments.split(lengths[1:], dim=1)), strict=True):
        own = batch[name]["mask"].shape[1]
        assert assigned[name].shape == (5, own, 5)
        assert torch.allclose(assigned[name], whole[:, :own], atol=1e-6), name


def test_it_learns_pairs_that_only_local_words_tell_apart():
    """Texts with the same bag of features at [CLS]: a few steps separate ten pairs."""
    head = make_head(preset="thesis").train()
    g = torch.Generator().manual_seed(1)
    words, segments = torch.randn(10, 4, WIDTH, generator=g), torch.randn(10, 3, 9, generator=g)
    batch = {
        "text": {"tokens": words, "mask": torch.ones(10, 4, dtype=torch.bool)},
        "rgb": {"vector": segments, "mask": torch.ones(10, 3, dtype=torch.bool)},
        "audio": {"vector": torch.zeros(10, 1, 5), "mask": torch.zeros(10, 1, dtype=torch.bool)},
        "ocr": {"tokens": torch.zeros(10, 1, 7), "mask": torch.zeros(10, 1, dtype=torch.bool)},
    }
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-3)
    first = head.loss(head(batch)).item()
    for _ in range(60):
        optimiser.zero_grad()
        head.loss(head(batch)).backward()
        optimiser.step()
    similarity = head(batch)["similarity"]
    assert (similarity.argmax(1) == torch.arange(10)).all() and head.loss(head(batch)).item() < first / 4


def test_where_padding_counts_there_is_always_as_much_of_it():
    head = make_head(preset="released", padded=(14, 9, 9, 9)).eval()
    batch = make_batch(more=1)
    alone = {
        role: {name: value[1:2, : max(1, int(part["mask"][1].sum()))] for name, value in part.items()}
        for role, part in batch.items()
    }
    loose = make_head(preset="released").eval()
    with torch.no_grad():
        pairs = [(head.encode_text(x["text"]), head.encode_video(x)) for x in (batch, alone)]
        for whole, one in zip(*pairs, strict=True):
            assert all(torch.allclose(value, whole[name][1:2], atol=1e-6) for name, value in one.items())
        whole, one = (loose.encode_text(x["text"])["local"] for x in (batch, alone))
        assert not torch.allclose(one, whole[1:2], atol=1e-3)


# --- presets and wrong configs ---


def test_presets():
    thesis, released = (make_head(preset=name, dropout=None).config for name in ("thesis", "released"))
    assert (thesis.margin, thesis.negatives, thesis.dropout, thesis.mask_padding) == (0.02, 0, 0.1, True)
    assert (released.margin, released.negatives, released.dropout, released.mask_padding) == (0.2, 1, 0.0, False)
    assert make_head(preset="released", margin=0.02).config.margin == 0.02
    again = T2VLADConfig(**{k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(released).items()})
    assert again == released


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preset": "thesus"}, "preset must be one of thesis, released"),
        ({"attention_heads": 5}, "must divide the width 12"),
        ({"vlad": "joint"}, "vlad must be one of"),
        ({"score": "local", "local": False}, "needs the local alignment"),
        ({"experts": ("rgb", "rgb", "ocr")}, "twice"),
        ({"expert_channels": (1, 2)}, "one width from 1 on for each"),
        ({"margin": float("nan")}, "margin"),
        ({"clusters": 0}, "clusters"),
        ({"padded": (37, 30)}, "padded must be"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_configs(changes, says):
    with pytest.raises(UserError, match=says):
        make_head(**changes)


# --- the authors' release ---


def released_tensors(golden):
    """The golden state dict under our names. `clusters1` is declared by the release and read by nothing."""
    out = {
        "vlad.centres": golden["text_pooling.clusters"].T,
        "vlad.residual_centres": golden["text_pooling.clusters2"][0].T,
        "mixture.weigh.weight": golden["ce.moe_fc.weight"],
        "mixture.weigh.bias": golden["ce.moe_fc.bias"],
    }
    attention = "ce.transformers.layers.0.self_attn"
    for part in ("weight", "bias"):
        projections = [golden[f"{attention}.{x}_proj.{part}"] for x in "qkv"]
        out[f"context.layer.self_attn.in_proj_{part}"] = torch.cat(projections)
    renamed = {
        "text_pooling.batch_norm1": "vlad.norms.video",
        "text_pooling.batch_norm2": "vlad.norms.text",
        "ce.transformers.layers.0": "context.layer",
        "ce.transformers.norm": "context.norm",
        "ce.video_dim_reduce": "context.project",
        "ce.video_GU": "mixture.video_units",
        "ce.text_GU": "mixture.text_units",
    }
    for key, value in golden.items():
        old = next((old for old in renamed if key.startswith(f"{old}.")), None)
        if old is None or ("self_attn" in key and "out_proj" not in key):
            continue
        key = renamed[old] + key.removeprefix(old)
        if "_units" in key:  # D-major there, centre by centre here
            key = key.replace("cg.fc", "gate").replace("cg.batch_norm", "norm")
        out[key] = value
    for key, value in out.items():
        if value.ndim == 2 and value.shape[1] == 6912:
            out[key] = value.view(len(value), 768, 9).mT.reshape(len(value), 6912)
    return out


def test_released_preset_is_the_release(shared, monkeypatch):
    monkeypatch.syspath_prepend(str(shared / "golden"))
    fw = __import__("fill_weights")
    sys.modules.pop("fill_weights")
    import json

    path = str(shared / "golden" / "t2vlad_paddle")
    with open(f"{path}.json") as file:
        meta = json.load(file)
    filled = {key: torch.from_numpy(fw.weight_value(key, shape)) for key, shape, *_ in meta["state_dict"]}
    assert fw.weights_crc32(filled) == meta["weights_crc32"]
    wanted = meta["cases"]["all"]["input"]
    experts = {name.removeprefix("features_"): i for name, i in wanted["experts"].items()}
    widths = {"experts": tuple(experts), "expert_channels": tuple(i["shape"][-1] for i in experts.values())}
    head, global_alone = (
        create_head("t2vlad", preset="released", text_channels=768, score=score, **widths).eval()
        for score in ("both", "global")
    )
    lacking, unexpected = head.load_state_dict(released_tensors(filled), strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in lacking)

    def tokens(of):
        values = torch.from_numpy(fw.matrix_input(of["key"], of["shape"]))
        return {"tokens": values, "mask": torch.ones(values.shape[:2], dtype=torch.bool)}

    batch = {"text": tokens(wanted["text"]), **{name: tokens(of) for name, of in experts.items()}}
    with torch.no_grad():
        text, video = head.encode_text(batch["text"]), head.encode_video(batch)
        out = {
            "sims": head.similarity(text, video),
            "s_local": text["local"] @ video["local"].T,
            "s_global": global_alone.similarity(text, video),  # reads none of its own weights
            "moe_weights": text["weights"][:, None],
            "text_vlad": text["local"].view(4, 9, 768).mT.reshape(4, -1),
            "vid_vlad": video["local"].view(4, 9, 768).mT.reshape(4, -1),
            "transformer_out": head.context([(p["tokens"], p["mask"]) for n, p in batch.items() if n != "text"])[0],
        }
        assigned = head.assignments(batch)
        out["text_assign"] = assigned.pop("text")
        out["vid_assign"] = torch.cat(list(assigned.values()), dim=1)
        for i, name in enumerate(experts):
            out[f"text_features_{name}"], out[f"video_features_{name}"] = text["experts"][:, i], video["experts"][:, i]
    fw.check(path, "all", {name: value.numpy() for name, value in out.items()})


def test_released_preset_takes_padding_for_tokens():
    head = make_head(preset="released").eval()
    assert not torch.allclose(head(make_batch())["similarity"], head(make_batch(more=3))["similarity"], atol=1e-4)
    nan = head(make_batch(padding=float("nan")))["similarity"]  # as zeros, whatever stands there
    assert torch.equal(nan, head(make_batch())["similarity"])
    assert np.isfinite(nan.detach().numpy()).all()
