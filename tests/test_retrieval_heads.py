"""The retrieval heads' pieces against the published code's numbers, and every such head on batches with gaps."""

import json

import numpy as np
import pytest
import torch

import heads
from errors import UserError
from heads.ce import CollaborativeGate
from heads.experts import GatedEmbedding, Projection
from heads.layers import masked_max
from heads.netvlad import NetVLAD
from heads.ranking_losses import hardest_margin, max_margin

RETRIEVAL_HEADS = [name for name in heads.list_heads() if "experts" in heads.get_head(name).reads]
BASELINES = ["ce", "global_only", "mee"]
SHAPES = {"text": {"tokens": (9, 8)}, "rgb": {"vector": (6,)}, "ocr": {"tokens": (5, 4)}, "face": {"roi": (3, 7)}}


# --- the published code's numbers ---


@pytest.fixture
def golden(shared, monkeypatch):
    """(fill_weights, case of a file -> (its facts, filled weights), check)."""
    monkeypatch.syspath_prepend(str(shared / "golden"))
    import fill_weights as fw

    def case(file, name):
        facts = json.loads((shared / "golden" / f"{file}.json").read_text())["cases"][name]
        filled = {k: torch.from_numpy(fw.weight_value(k, s)) for k, s in facts.get("state_dict", ())}
        floats = {k: v for k, v in filled.items() if not k.endswith("num_batches_tracked")}
        assert "weights_crc32" not in facts or fw.weights_crc32(floats) == facts["weights_crc32"]
        return facts, floats

    def check(file, name, outputs):
        numbers = {key: np.atleast_1d(value.detach().numpy()) for key, value in outputs.items()}
        fw.check(str(shared / "golden" / file), name, numbers)

    return fw, case, check


def load(module, tensors, **renamed):
    """Fill a module; published names' parts are renamed, counters left alone."""
    out = {}
    for key, value in tensors.items():
        for old, new in renamed.items():
            key = key.replace(old.replace("__", "."), new)
        out[key] = value
    lacking, unexpected = module.load_state_dict(out, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in lacking)
    return module


UNIT = {"cg__fc": "gate", "cg__batch_norm": "norm"}


@pytest.mark.parametrize("name", ["geu_bn", "geu_bn_nonorm"])
def test_gated_embedding_golden(golden, name):
    fw, case, check = golden
    facts, tensors = case("retrieval_heads", name)
    x = torch.from_numpy(fw.matrix_input(facts["input"]["key"], facts["input"]["shape"]))
    unit = load(GatedEmbedding(20, 8, normalise=not name.endswith("nonorm")), tensors, **UNIT)
    found = {"eval": unit.eval()(x), "train": unit.train()(x)}
    check("retrieval_heads", name, found)


def test_gated_embedding_without_norm_and_projection_golden(golden):
    fw, case, check = golden
    facts, tensors = case("retrieval_heads", "geu_nobn")
    x = torch.from_numpy(fw.matrix_input(facts["input"]["key"], facts["input"]["shape"]))
    tensors = {key: value for key, value in tensors.items() if "batch_norm" not in key}  # there, and unused
    check("retrieval_heads", "geu_nobn", {"eval": load(GatedEmbedding(20, 8, norm=False), tensors, **UNIT)(x)})
    _, tensors = case("retrieval_heads", "reduce_dim")
    check("retrieval_heads", "reduce_dim", {"eval": load(Projection(20, 8), tensors)(x)})


def test_collaborative_gate_golden(golden):
    fw, case, check = golden
    facts, tensors = case("retrieval_heads", "ce_gating_reasoning")
    x, relation = (
        torch.from_numpy(fw.matrix_input(k, s))
        for k, s in zip(facts["input"]["key"], facts["input"]["shape"], strict=True)
    )
    renamed = {"cg__fc": "fc", "cg__batch_norm2": "norm_own", "cg__batch_norm": "norm_relation"}
    gate = load(CollaborativeGate(8), tensors, **renamed)
    found = {"eval": gate.eval()(x, relation), "train": gate.train()(x, relation)}
    check("retrieval_heads", "ce_gating_reasoning", found)


@pytest.mark.parametrize("name", ["sims_all", "sims_missing"])
def test_similarity_golden(golden, name):
    fw, _, check = golden
    experts = ("audio", "face", "rgb")
    unit = torch.nn.functional.normalize
    text = torch.stack([torch.from_numpy(fw.matrix_input(f"heads/t_{m}", (4, 3, 6))) for m in experts], dim=2)
    video = torch.stack([torch.from_numpy(fw.matrix_input(f"heads/v_{m}", (4, 6))) for m in experts], dim=1)
    weights = torch.from_numpy(fw.matrix_input("heads/tw", (4, 3, 3))).softmax(-1)
    present = torch.ones(4, 3)
    if name == "sims_missing":
        present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]])
    head = heads.create_head("mee", text_channels=6, experts=experts, expert_channels=(6, 6, 6))
    each = head.similarity(
        {"experts": unit(text, dim=-1).flatten(0, 1), "weights": weights.flatten(0, 1)},
        {"experts": unit(video, dim=-1), "present": present.bool()},
    )
    check("retrieval_heads", name, {"indep": each, "avg": each.view(4, 3, 4).mean(1)})


def loss_and_gradient(loss, similarity):
    similarity = similarity.clone().requires_grad_()
    value = loss(similarity)
    (gradient,) = torch.autograd.grad(value, similarity)
    return value, gradient


@pytest.mark.parametrize("margin", ["0.02", "0.05", "0.2", "1.0"])
def test_max_margin_golden(golden, margin):
    fw, _, check = golden
    similarity = torch.from_numpy(fw.matrix_input("heads/sims", (7, 7), 0.1)).double()
    value, gradient = loss_and_gradient(lambda s: max_margin(s, float(margin)), similarity)
    check("retrieval_heads", f"loss_margin_{margin}", {"fix_norm": value, "fix_norm_grad": gradient})


@pytest.mark.parametrize("margin", ["0.02", "0.2"])
@pytest.mark.parametrize("hardest", [1, 3])
def test_hardest_margin_golden(golden, margin, hardest):
    fw, _, check = golden
    similarity = torch.from_numpy(fw.matrix_input("heads/sims", (7, 7), 0.1)).double()
    value, gradient = loss_and_gradient(lambda s: hardest_margin(s, float(margin), hardest), similarity)
    name = f"margin{margin}_topk{hardest}_hard"
    check("t2vlad_paddle", "contrastive_loss", {name: value, f"{name}_grad": gradient})


@pytest.mark.parametrize(
    ("name", "background", "norm"),
    [("ce_bn", 0, "batch_norm"), ("ce_ghost_bn", 1, "batch_norm"), ("ce_ghost_nobn", 1, "none")],
)
def test_netvlad_golden(golden, name, background, norm):
    fw, case, check = golden
    facts, tensors = case("netvlad", name)
    x = torch.from_numpy(fw.matrix_input(facts["input"]["key"], facts["input"]["shape"]))
    tensors["residual_centres"] = tensors.pop("clusters2")[0].T
    tensors["centres"] = tensors.pop("clusters").T
    clusters = len(tensors["residual_centres"])
    module = load(NetVLAD(x.shape[-1], clusters, background, norm), tensors, batch_norm="norms.all")

    def d_major(mode):  # the published layout, of length 1 as a whole too
        out = module.train(mode == "train")(x, torch.ones(x.shape[:2], dtype=torch.bool))
        return torch.nn.functional.normalize(out.mT.flatten(1), dim=-1)

    check("netvlad", name, {mode: d_major(mode) for mode in facts["outputs"]})


# --- losses ---


def test_texts_of_one_video_are_no_negatives():
    similarity = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.5]])
    same = torch.tensor([7, 7, 2])
    negative = same[:, None] != same[None]
    assert max_margin(similarity, 0.2).item() == pytest.approx(4 * 0.2 / 12)  # both ways, of 6 pairs each
    assert max_margin(similarity, 0.2, negative) == 0 and hardest_margin(similarity, 0.2, 1, negative) == 0
    head = make_head("mee", margin=0.2)
    assert head.loss({"similarity": similarity}, {"video": same}) == 0
    assert head.loss({"similarity": similarity}) > 0
    assert max_margin(similarity[:1, :1], 0.2) == 0 and hardest_margin(similarity[:1, :1], 0.2) == 0


def test_more_hardest_negatives_than_there_are():
    similarity = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hardest_margin(similarity, 0.2, 3), hardest_margin(similarity, 0.2, 30))


def test_masked_max_of_negative_values_and_of_nothing():
    tokens = torch.tensor([[[-3.0, -1.0], [-2.0, -4.0], [9.0, 9.0]], [[5.0, 5.0]] * 3])
    mask = torch.tensor([[True, True, False], [False] * 3])
    assert masked_max(tokens, mask).tolist() == [[-2, -1], [0, 0]]


# --- every retrieval head ---


def make_head(name, **changes):
    torch.manual_seed(0)
    small = {"clusters": 3} if hasattr(heads.get_head(name).Config, "clusters") else {}
    if name == "t2vlad":
        small |= {"dropout": 0.0}
    return heads.create_head(name, **{**heads.get_head(name).dims(SHAPES), **small, **changes})


def make_batch(b=6, seed=0, dtype=torch.float32, more=0):
    g = torch.Generator().manual_seed(seed)
    batch = {}
    for role, arrays in SHAPES.items():
        ((array, shape),) = arrays.items()
        mask = torch.arange(4 + more) < torch.randint(0, 5, (b, 1), generator=g)
        mask[:, 0] |= role == "text"
        if role == "rgb":
            mask[:, 0] = torch.arange(b) != 1  # the second video has rgb only if nothing else, below
        if role in ("ocr", "face"):
            mask[2] = False
        values = torch.randn(b, 4, shape[-1], generator=g)
        values = torch.cat([values, torch.full((b, more, shape[-1]), 7.0)], dim=1)
        batch[role] = {array: values.to(dtype), "mask": mask}
    batch["rgb"]["mask"][3] = batch["ocr"]["mask"][3] = batch["face"]["mask"][3] = False  # nothing at all
    return batch


def test_baselines_are_listed():
    assert {"t2vlad", *BASELINES} == set(RETRIEVAL_HEADS)


def test_dims_follow_from_the_stores():
    assert heads.get_head("mee").dims(SHAPES) == {
        "text_channels": 8,
        "experts": ("rgb", "ocr", "face"),
        "expert_channels": (6, 4, 7),
    }


@pytest.mark.parametrize("name", RETRIEVAL_HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_shapes_and_gradients(name, dtype):
    head = make_head(name, margin=0.5)
    out = head(make_batch(dtype=dtype))
    assert out["similarity"].shape == (6, 6) and out["similarity"].dtype == torch.float32
    assert torch.allclose(out["weights"].sum(1), torch.ones(6)) and out["weights"].shape == (6, 3)
    assert out["similarity"].abs().max() <= 1 + 1e-6
    head.loss(out, {"video": torch.arange(6)}).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any() or "norm" in key or "in_proj_bias" in key or key.endswith("gate.bias"), key


@pytest.mark.parametrize("name", RETRIEVAL_HEADS)
@pytest.mark.parametrize("training", [False, True])
def test_padding_and_missing_experts_have_no_influence(name, training):
    out = make_head(name).train(training)(make_batch())
    batch = make_batch(more=2)
    for role in SHAPES:
        for array in [key for key in batch[role] if key != "mask"]:
            batch[role][array] = torch.where(batch[role]["mask"][..., None], batch[role][array], float("nan"))
    again = make_head(name).train(training)(batch)
    for key in out:
        assert torch.allclose(out[key], again[key], atol=1e-6), key
    assert not out["similarity"][:, 3].any()  # the video of which nothing is known


@pytest.mark.parametrize("name", RETRIEVAL_HEADS)
def test_a_video_without_experts_takes_no_part_in_batch_statistics(name):
    batch, others = make_batch(), [0, 1, 2, 4, 5]  # of the fourth nothing is known
    fewer = {role: {key: value[others] for key, value in part.items()} for role, part in batch.items()}
    whole, without = (make_head(name).train().encode_video(b)["experts"] for b in (batch, fewer))
    there = torch.stack([fewer[role]["mask"].any(1) for role in ("rgb", "ocr", "face")], dim=1)
    assert torch.allclose(whole[others][there], without[there], atol=1e-6)


@pytest.mark.parametrize("name", RETRIEVAL_HEADS)
def test_rows_depend_on_nothing_beside_them_and_blocks_are_the_matrix(name):
    head, batch = make_head(name).eval(), make_batch()
    full = head(batch)["similarity"]
    one = {role: {key: value[4:5] for key, value in part.items()} for role, part in batch.items()}
    text, video = head.encode_text(batch["text"]), head.encode_video(batch)
    assert torch.allclose(head.similarity(head.encode_text(one["text"]), video), full[4:5], atol=1e-6)
    assert torch.allclose(head.similarity(text, head.encode_video(one)), full[:, 4:5], atol=1e-6)


@pytest.mark.parametrize("name", RETRIEVAL_HEADS)
def test_bfloat16_keeps_similarities_apart(name):
    head, batch = make_head(name), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(batch)
    assert out["similarity"].dtype == torch.float32
    head.loss(out).backward()


def test_experts_that_collaborate_hear_only_those_that_are_there():
    head = make_head("ce").eval()
    own, present = torch.randn(2, 3, 8), torch.tensor([[True, True, False], [False, True, False]])
    relations = head.relations(own, present)
    pair = head.relate(torch.cat([own[0, 0], own[0, 1]]))
    assert torch.allclose(relations[0, 0], head.attend(pair), atol=1e-6)
    both = (head.relate(torch.cat([own[0, 2], own[0, 0]])) + head.relate(torch.cat([own[0, 2], own[0, 1]]))) / 2
    assert torch.allclose(relations[0, 2], head.attend(both), atol=1e-6)
    assert torch.allclose(relations[1, 1], head.attend(torch.zeros(8)), atol=1e-6)  # alone
    with pytest.raises(UserError, match="at least two"):
        make_head("ce", experts=("rgb",), expert_channels=(6,))


@pytest.mark.parametrize("name", ["mee", "ce"])
def test_wrong_configs(name):
    for changes, says in (({"assignment": "layer"}, "assignment must be"), ({"clusters": 0}, "clusters")):
        with pytest.raises(UserError, match=says):
            make_head(name, **changes)
