"""Heads: the registry, every registered head on a random batch, and SAOA against its equations written out in numpy."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

import heads
from errors import UserError
from heads.layers import masked_softmax, place_boxes, roi_align_max

C, C1, T, H, W, NN, NV = 16, 12, 2, 5, 6, 9, 6
SHAPES = {
    "verb": {"map": (T, H, W, C), "spatial": (H, W, C), "vector": (C,)},
    "noun": {"vector": (C,)},
    "objects": {"roi": (10, C1)},
}


def make_batch(b=4, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def objects(n):
        low = torch.rand(b, n, 2, generator=g) * 0.6
        boxes = torch.cat([low, low + 0.05 + torch.rand(b, n, 2, generator=g) * 0.5], dim=-1)
        mask = torch.rand(b, n, generator=g) > 0.3
        mask[:, 0] = True
        return {"roi": torch.rand(b, n, C1, generator=g).to(dtype), "boxes": boxes, "mask": mask}

    maps = torch.rand(b, T, H, W, C, generator=g).to(dtype)
    spatial = maps.float().mean(1).to(dtype)
    return {
        "verb": {
            "map": maps,
            "spatial": spatial,
            "vector": spatial.float().mean((1, 2)).to(dtype),
            "geometry": torch.tensor([[W, H, 0.0, 0.0]]).repeat(b, 1),
        },
        "noun": {"vector": torch.rand(b, C, generator=g).to(dtype)},
        "objects_noun": objects(NN),
        "objects_verb": objects(NV),
    }


def make_head(name, **changes):
    torch.manual_seed(0)
    dims = heads.get_head(name).dims(SHAPES)
    return heads.create_head(name, verbs=7, nouns=11, **{**dims, **changes})


# --- the registry ---


def test_importing_heads_imports_no_torch():
    code = "import sys, heads; heads.list_heads(); heads.metrics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_heads_know_neither_stores_nor_extract():
    code = "import sys, heads.saoa, heads.whole_frame; assert not {'stores', 'extract', 'pipelines'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_listed_head_is_registered():
    assert {"ipl", "saoa", "whole_frame"} <= set(heads.list_heads())
    for name in heads.list_heads():
        assert heads.get_head(name).Config


@pytest.mark.parametrize("name", heads.list_heads())
def test_duplicates_are_refused(name):
    with pytest.raises(ValueError, match="already registered"):
        heads.register_head(name)(type("Other", (), {}))


def test_unknown_head_and_wrong_configs():
    with pytest.raises(UserError, match="saoa"):
        heads.create_head("soao")
    with pytest.raises(UserError, match="colour"):
        make_head("saoa", colour=3)
    with pytest.raises(UserError, match="divide"):
        make_head("saoa", reduction=5)
    with pytest.raises(UserError, match="verb_window_s"):
        make_head("saoa", verb_window_s=0.0)
    with pytest.raises(UserError, match="equal ones"):
        heads.get_head("saoa").dims({**SHAPES, "noun": {"vector": (C + 1,)}})


def test_plug_in(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from heads.whole_frame import WholeFrame\nclass Mine(WholeFrame):\n    pass\nhalf = 1\n")
    head = heads.create_head(f"py:{file}:Mine", verbs=2, nouns=3, verb_channels=4, noun_channels=5)
    assert type(head).__name__ == "Mine"
    for wrong in (f"py:{file}:Other", f"py:{file}:half", f"py:{tmp_path}/no.py:Mine", "py:mine"):
        with pytest.raises(UserError):
            heads.create_head(wrong)


@pytest.mark.parametrize("body", ["1 / 0", "import no_such_module", "raise SystemExit(3)", "def ("])
def test_a_plug_in_that_cannot_run(tmp_path, body):
    file = tmp_path / "h2.py"
    file.write_text(body + "\n")
    with pytest.raises(UserError, match=r"h2\.py failed: (ZeroDivision|ModuleNotFound|Syntax|SystemExit)"):
        heads.get_head(f"py:{file}:H")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="no Python file"):
        heads.get_head(f"py:{tmp_path}/notes.txt:H")


# --- every head ---


CLIP_HEADS = [name for name in heads.list_heads() if "verb" in heads.get_head(name).reads]  # verb and noun of a clip


@pytest.mark.parametrize("name", CLIP_HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_shapes_and_gradients(name, dtype):
    head = make_head(name)
    with pytest.raises(FrozenInstanceError):
        head.config.verbs = 3
    out = head(make_batch(dtype=dtype))
    assert out["verb"].shape == (4, 7) and out["noun"].shape == (4, 11)
    assert all(torch.isfinite(x).all() and x.dtype == torch.float32 for x in out.values())
    head.loss(out, {"verb": torch.tensor([0, 1, 2, 6]), "noun": torch.tensor([10, 0, 1, 1])}).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), key


@pytest.mark.parametrize("name", CLIP_HEADS)
def test_masked_objects_have_no_influence(name):
    head, batch, other = make_head(name), make_batch(), make_batch(seed=1)
    out = head(batch)
    for key in ("objects_noun", "objects_verb"):
        mask = batch[key]["mask"]
        if f"attention_{key[8:]}" in out:
            assert (out[f"attention_{key[8:]}"][~mask] == 0).all()
            assert torch.allclose(out[f"attention_{key[8:]}"].sum(1), torch.ones(4))
        for array, poison in (("roi", float("nan")), ("boxes", 1e6)):
            batch[key][array] = torch.where(mask[..., None], batch[key][array], other[key][array] + poison)
    again = head(batch)
    assert all(torch.equal(out[k], again[k]) for k in out)


@pytest.mark.parametrize("name", CLIP_HEADS)
def test_more_padding_and_permutation_change_nothing(name):
    head, batch = make_head(name), make_batch()
    out = head(batch)
    order = torch.randperm(NN + 3)
    wide = {**batch, "objects_noun": {}}
    for key, value in batch["objects_noun"].items():
        padded = torch.cat([value, torch.zeros(4, 3, *value.shape[2:], dtype=value.dtype)], dim=1)
        wide["objects_noun"][key] = padded[:, order]
    again = head(wide)
    assert torch.allclose(out["noun"], again["noun"], atol=1e-6)
    if "attention_noun" in out:
        padded = torch.cat([out["attention_noun"], torch.zeros(4, 3)], dim=1)
        assert torch.allclose(padded[:, order], again["attention_noun"], atol=1e-6)


@pytest.mark.parametrize("name", CLIP_HEADS)
def test_no_object_at_all_is_defined(name):
    head, batch = make_head(name), make_batch()
    for key in ("objects_noun", "objects_verb"):
        batch[key]["mask"][1] = False
    out = head(batch)
    assert all(torch.isfinite(x).all() for x in out.values())
    if name == "saoa":
        assert torch.equal(out["noun"][1], head.noun.classify.bias) and not out["attention_verb"][1].any()
    head.loss(out, {"verb": torch.zeros(4).long(), "noun": torch.zeros(4).long()}).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("name", CLIP_HEADS)
def test_rows_do_not_depend_on_their_neighbours(name):
    head, batch = make_head(name).eval(), make_batch()
    one = {role: {k: v[2:3] for k, v in arrays.items()} for role, arrays in batch.items()}
    for key, value in head(one).items():
        assert torch.allclose(value[0], head(batch)[key][2], atol=1e-6)


# --- SAOA against eq. 3.1 to 3.11 ---


def sample(plane, y, x):
    """Bilinear value of one (H, W, C) map at a point; zero more than one cell outside."""
    h, w, _ = plane.shape
    if y < -1 or y > h or x < -1 or x > w:
        return np.zeros(plane.shape[2])
    y, x = max(y, 0), max(x, 0)
    y0, x0 = min(int(y), h - 1), min(int(x), w - 1)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    dy, dx = (y - y0 if y0 < h - 1 else 0), (x - x0 if x0 < w - 1 else 0)
    top = plane[y0, x0] * (1 - dx) + plane[y0, x1] * dx
    bottom = plane[y1, x0] * (1 - dx) + plane[y1, x1] * dx
    return top * (1 - dy) + bottom * dy


def roi_max(plane, box, size):
    x0, y0, x1, y1 = box
    wide, high = max(x1 - x0, 1), max(y1 - y0, 1)
    nx, ny = int(np.ceil(wide / size)), int(np.ceil(high / size))
    bins = []
    for r in range(size):
        for c in range(size):
            points = [
                sample(plane, y0 + (r + (i + 0.5) / ny) * high / size, x0 + (c + (j + 0.5) / nx) * wide / size)
                for i in range(ny)
                for j in range(nx)
            ]
            bins.append(np.mean(points, axis=0))
    return np.max(bins, axis=0)


def saoa_numpy(p, batch, b, rescale):
    """Eq. 3.1 to 3.11 for clip b, one object at a time."""

    def array(x):
        return x[b].double().numpy()

    fv, fn, plane = (
        array(batch["verb"]["vector"]),
        array(batch["noun"]["vector"]),
        array(batch["verb"]["spatial"]),
    )
    sx, sy, ox, oy = array(batch["verb"]["geometry"])

    def branch(name, own, objects, query):
        features = []
        for i in np.flatnonzero(objects["mask"][b].numpy()):
            clip, thing = own(i), array(objects["roi"])[i]
            if rescale:
                joined = np.concatenate([clip / np.linalg.norm(clip), thing / np.linalg.norm(thing)])
                joined = joined * np.linalg.norm(clip)
            else:
                joined = np.concatenate([clip, thing])
            aligned = np.maximum(p[f"{name}.align.weight"] @ joined + p[f"{name}.align.bias"], 0)
            gate = 1 / (1 + np.exp(-(p[f"{name}.gate.weight"] @ query + p[f"{name}.gate.bias"])))
            features.append(gate * aligned)
        scores = np.array([(p[f"{name}.query.weight"] @ query) @ (p[f"{name}.key.weight"] @ f) for f in features])
        attention = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        attended = sum(a * f for a, f in zip(attention, features, strict=True))
        full = np.zeros(objects["mask"].shape[1])
        full[objects["mask"][b].numpy()] = attention
        return p[f"{name}.classify.weight"] @ attended + p[f"{name}.classify.bias"], full

    def local(i):
        x0, y0, x1, y1 = array(batch["objects_verb"]["boxes"])[i]
        return roi_max(plane, (x0 * sx + ox, y0 * sy + oy, x1 * sx + ox, y1 * sy + oy), 7)

    return *branch("noun", lambda i: fn, batch["objects_noun"], fv), *branch("verb", local, batch["objects_verb"], fn)


@pytest.mark.parametrize("rescale", [True, False])
def test_saoa_is_its_equations(rescale):
    head, batch = make_head("saoa", rescale=rescale), make_batch(seed=3)
    batch["verb"]["geometry"] = torch.tensor(
        [[W * 1.2, H * 0.9, -0.4, 0.2], [W, H, 0, 0], [4, 9, 1, -2.0], [W, H, 0, 0]]
    )
    out = head(batch)
    parameters = {k: v.detach().double().numpy() for k, v in head.state_dict().items()}
    for b in range(4):
        noun, attention_noun, verb, attention_verb = saoa_numpy(parameters, batch, b, rescale)
        for key, expected in (
            ("noun", noun),
            ("verb", verb),
            ("attention_noun", attention_noun),
            ("attention_verb", attention_verb),
        ):
            assert np.abs(out[key][b].detach().numpy() - expected).max() < 1e-5, key


def test_saoa_gates_and_attends_across_streams():
    """The noun branch hears the verb stream only through the gate and the query, and the other way round."""
    head, batch = make_head("saoa"), make_batch()
    with torch.no_grad():
        for name in ("gate", "query"):
            getattr(head.noun, name).weight.zero_()
    other = {**batch, "verb": {**batch["verb"], "vector": torch.rand(4, C)}}
    assert torch.equal(head(batch)["noun"], head(other)["noun"])
    assert torch.equal(head(batch)["verb"], head(other)["verb"])  # the verb branch looks at the map, not the vector


@pytest.mark.parametrize("cells", [(8, 8), (5, 9), (16, 30)])
def test_roi_align_equals_torchvision(cells):
    roi_align = pytest.importorskip("torchvision.ops").roi_align
    h, w = cells
    g = torch.Generator().manual_seed(1)
    maps = torch.randn(3, h, w, 10, generator=g)
    low = torch.rand(3, 20, 2, generator=g) * torch.tensor([w, h]) * 1.2 - 2
    boxes = torch.cat([low, low + torch.rand(3, 20, 2, generator=g) * torch.tensor([w, h])], dim=-1)
    boxes[0, 0] = torch.tensor([0, 0, w, h])
    boxes[0, 1] = torch.tensor([2.0, 2, 2, 2])
    theirs = roi_align(maps.permute(0, 3, 1, 2).contiguous(), list(boxes), 7, sampling_ratio=0, aligned=False)
    assert torch.allclose(roi_align_max(maps, boxes), theirs.amax((2, 3)).view(3, 20, 10), atol=1e-5)


def test_place_boxes():
    boxes = torch.tensor([[[0.0, 0.25, 0.5, 1.0]]])
    assert place_boxes(boxes, torch.tensor([[8.0, 8, 0, 0]])).tolist() == [[[0, 2, 4, 8]]]
    # A centre crop: half the width is cut off, so the frame's middle is the map's middle and its edge lies outside.
    assert place_boxes(boxes, torch.tensor([[16.0, 8, -4, 0]])).tolist() == [[[-4, 2, 4, 8]]]


def test_masked_softmax():
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    out = masked_softmax(scores, torch.tensor([[True, True, False], [False] * 3]))
    assert torch.allclose(out[0, :2], scores[0, :2].softmax(0)) and out[0, 2] == 0 and not out[1].any()
