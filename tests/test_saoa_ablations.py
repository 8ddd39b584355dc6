"""Every row of the thesis's tables 3.1 to 3.5 and of SAP's table 2, against its equations written out with loops."""

import itertools

import pytest
import torch
from synthetic_stores import CLIP_ARRAYS, all_stores, clip_store

import heads
from errors import UserError
from heads.ablations import ROWS
from pipelines import train_head
from pipelines.run_folder import open_run

V, N, C, C1, B, H, W = 5, 6, 8, 5, 3, 4, 5
LABELS = {"verb": torch.tensor([0, 4, 2]), "noun": torch.tensor([5, 0, 3])}
SIZES = {
    "saoa": {"channels": C, "object_channels": C1, "roi_size": 2},
    "whole_frame": {"verb_channels": C, "noun_channels": C},
    "pooled_objects": {"verb_channels": C, "noun_channels": C, "object_channels": C1},
}
CLIP_ROWS = [name for name, row in ROWS.items() if row.head in SIZES]


def make_head(name, seed=0, **changes):
    row = ROWS[name]
    torch.manual_seed(seed)
    head = heads.create_head(row.head, verbs=V, nouns=N, **{**SIZES[row.head], **row.settings, **changes})
    return head.train()


def make_batch(seed=0, gradients=False):
    """Values in float64 that float32 holds exactly, so that both sides see the same numbers."""
    g = torch.Generator().manual_seed(seed)

    def values(*shape):
        return torch.randn(*shape, generator=g).double().requires_grad_(gradients)

    def objects(n):
        low = torch.rand(B, n, 2, generator=g).double() * 0.6
        boxes = torch.cat([low, low + 0.1 + 0.5 * torch.rand(B, n, 2, generator=g).double()], dim=-1).float().double()
        mask = torch.rand(B, n, generator=g) > 0.3
        mask[:, 1] = True
        return {"roi": values(B, n, C1), "boxes": boxes, "mask": mask}

    def stream():
        geometry = torch.tensor([[W, H, 0.0, 0.0], [W * 1.25, H * 0.875, -0.5, 0.25], [W, H, 1.0, -0.5]]).double()
        return {"spatial": values(B, H, W, C), "vector": values(B, C), "geometry": geometry}

    return {"verb": stream(), "noun": stream(), "objects_noun": objects(5), "objects_verb": objects(4)}


def to_float(batch):
    def cast(value):
        return value if value.dtype == torch.bool else value.detach().float().requires_grad_(value.requires_grad)

    return {role: {name: cast(value) for name, value in arrays.items()} for role, arrays in batch.items()}


# --- the equations, straight from the pages: no code of the heads' ---


def sample(plane, y, x):
    """Bilinear value of one (H, W, C) map at a point; zero more than one cell outside."""
    if y < -1 or y > H or x < -1 or x > W:
        return torch.zeros(C, dtype=plane.dtype)
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    total = 0
    for i, j in itertools.product(range(H), range(W)):
        weight = max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
        if weight:
            total = total + weight * plane[i, j]
    return total


def roi_max(plane, box, geometry, bins=2):
    """RoIAlign (aligned=False, as many samples as fit), then the spatial maximum."""
    sx, sy, ox, oy = geometry.tolist()
    x0, y0, x1, y1 = (float(v) for v in box)
    x0, y0, x1, y1 = x0 * sx + ox, y0 * sy + oy, x1 * sx + ox, y1 * sy + oy
    wide, high = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    nx, ny = -int(-wide // bins), -int(-high // bins)
    found = []
    for r, c in itertools.product(range(bins), range(bins)):
        points = [
            sample(plane, y0 + (r + (i + 0.5) / ny) * high / bins, x0 + (c + (j + 0.5) / nx) * wide / bins)
            for i, j in itertools.product(range(ny), range(nx))
        ]
        found.append(sum(points) / len(points))
    return torch.stack(found).max(dim=0).values


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def probe_norm(rows):
    """Each channel to mean 0 and deviation 1 over the clips, as a batch norm in training does."""
    mean = sum(rows) / len(rows)
    variance = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [(row - mean) / (variance + 1e-5).sqrt() for row in rows]


def present(objects, b):
    return [i for i in range(objects["mask"].shape[1]) if objects["mask"][b, i]]


def saoa_branch(p, name, batch, b, row, rescale=True):
    """Eq. 3.1 to 3.11 for one branch of one clip, one object at a time. What a row lacks is written row by row."""
    other = {"verb": "noun", "noun": "verb"}[name]
    own, across = batch[name]["vector"][b], batch[other]["vector"][b]
    objects = batch[f"objects_{name}"]
    alone = row == "SA (Det Feat only)" and name == "noun"
    everywhere = (name == "noun" and row != "SA + Local Alignment") or row == "SAP"
    gate_by = {"SA w/o CSG": None, "SA w/o Gating": None, "SA w/o CSG & ARM": None, "SA w/o Cross-Stream": own}
    attend_by = {"SA w/o CSG": own, "SA w/o Cross-Stream": own, "SA w/o ARM": None, "SA w/o CSG & ARM": None}
    features = []
    for i in present(objects, b):
        thing = objects["roi"][b, i]
        if alone:
            joined = thing
        else:
            plane, geometry = batch[name]["spatial"][b], batch[name]["geometry"][b]
            clip = own if everywhere else roi_max(plane, objects["boxes"][b, i], geometry)
            joined = torch.cat([clip, thing])
            if rescale:
                length = (clip**2).sum().sqrt()
                joined = torch.cat([clip / length, thing / (thing**2).sum().sqrt()]) * length
        aligned = torch.einsum("ij,j->i", p[f"{name}.align.weight"], joined) + p[f"{name}.align.bias"]
        aligned = torch.maximum(aligned, torch.zeros_like(aligned))
        source = gate_by.get(row, across)
        if source is not None:
            aligned = sigmoid(p[f"{name}.gate.weight"] @ source + p[f"{name}.gate.bias"]) * aligned
        features.append(aligned)
    source = attend_by.get(row, across)
    if source is None:
        weights = [torch.tensor(1 / len(features), dtype=own.dtype)] * len(features)
    else:
        query = torch.einsum("ij,j->i", p[f"{name}.query.weight"], source)
        scores = [(query * (p[f"{name}.key.weight"] @ f)).sum() for f in features]
        total = sum(torch.exp(s) for s in scores)
        weights = [torch.exp(s) / total for s in scores]
    attended = sum(w * f for w, f in zip(weights, features, strict=True))
    attention = torch.zeros(objects["mask"].shape[1], dtype=own.dtype)
    attention[present(objects, b)] = torch.stack(weights).detach()
    return p[f"{name}.classify.weight"] @ attended + p[f"{name}.classify.bias"], attention


def probe(p, name, rows, normalised):
    index = "1." if normalised else ""
    rows = probe_norm(rows) if normalised else rows
    return torch.stack([p[f"{name}.{index}weight"] @ row + p[f"{name}.{index}bias"] for row in rows])


def by_hand(p, row, batch, **switches):
    """{"verb", "noun"} logits, and for SAOA the attentions, of a whole batch."""
    out = {}
    for name, other in (("verb", "noun"), ("noun", "verb")):
        vectors = [batch[name]["vector"][b] for b in range(B)]
        others = [batch[other]["vector"][b] for b in range(B)]
        normalised = switches.get("normalise", True)
        if ROWS[row].head == "saoa":
            found = [saoa_branch(p, name, batch, b, row, **switches) for b in range(B)]
            out[name] = torch.stack([logits for logits, _ in found])
            out[f"attention_{name}"] = torch.stack([attention for _, attention in found])
        elif row == "Baseline":
            out[name] = probe(p, name, vectors, normalised)
        elif row == "Verb+Noun Fusion":
            both = [torch.cat([batch["verb"]["vector"][b], batch["noun"]["vector"][b]]) for b in range(B)]
            out[name] = probe(p, name, both, normalised)
        elif row == "Noun + Verb":
            if normalised:
                vectors, others = probe_norm(vectors), probe_norm(others)
            logits = []
            for own, across in zip(vectors, others, strict=True):
                gate = sigmoid(p[f"{name}.gate.weight"] @ across + p[f"{name}.gate.bias"])
                logits.append(p[f"{name}.classify.weight"] @ (gate * own) + p[f"{name}.classify.bias"])
            out[name] = torch.stack(logits)
        else:
            objects = batch[f"objects_{name}"]
            rows = []
            for b in range(B):
                things = [objects["roi"][b, i] for i in present(objects, b)]
                if row == "Det Feat + Avg Pooling":
                    pooled = sum(things) / len(things)
                else:
                    pooled = torch.stack([max(t[c] for t in things) for c in range(C1)])
                rows.append(torch.cat([vectors[b], pooled]) if row == "Noun + Det Feat" else pooled)
            out[name] = probe(p, name, rows, normalised)
    return out


def cross_entropy(logits, labels):
    picked = [logits[b, label] - torch.exp(logits[b]).sum().log() for b, label in enumerate(labels.tolist())]
    return -sum(picked) / len(picked)


@pytest.mark.parametrize("switch", [True, False], ids=["scaled", "as-they-are"])
@pytest.mark.parametrize("row", CLIP_ROWS)
def test_every_row_is_its_equations(row, switch):
    """Outputs, and the gradients of the loss to all parameters and all features, to 1e-5."""
    switches = {"rescale" if ROWS[row].head == "saoa" else "normalise": switch}
    head, exact = make_head(row, **switches), make_batch(gradients=True)
    batch = to_float(exact)
    parameters = {name: value.detach().double().requires_grad_() for name, value in head.named_parameters()}
    out, expected = head(batch), by_hand(parameters, row, exact, **switches)
    assert set(out) == set(expected)
    for name, value in expected.items():
        assert (out[name] - value).abs().max() < 1e-5, name

    loss = head.loss(out, LABELS)
    by_pages = sum(cross_entropy(expected[name], LABELS[name]) for name in ("verb", "noun"))
    assert abs(loss.item() - by_pages.item()) < 1e-5
    loss.backward()
    by_pages.backward()
    for name, value in head.named_parameters():
        assert (value.grad - parameters[name].grad).abs().max() < 1e-5, name
    leaves = [(role, name) for role, arrays in batch.items() for name in arrays if arrays[name].requires_grad]
    for role, name in leaves:
        ours, theirs = batch[role][name].grad, exact[role][name].grad
        if ours is None or theirs is None:  # what a row does not look at
            assert ours is None and theirs is None, (role, name)
        else:
            assert (ours - theirs).abs().max() < 1e-5, (role, name)


@pytest.mark.parametrize("row", CLIP_ROWS)
def test_padded_boxes_change_nothing_and_permuting_boxes_permutes_attention_alone(row):
    head, batch = make_head(row), to_float(make_batch(seed=2))
    out = head(batch)
    g = torch.Generator().manual_seed(3)
    moved, orders = {**batch}, {}
    for name in ("verb", "noun"):
        objects = batch[f"objects_{name}"]
        n = objects["mask"].shape[1] + 2
        orders[name] = torch.randperm(n, generator=g)
        wide = {}
        for key, value in objects.items():
            padding = torch.full((B, 2, *value.shape[2:]), float("nan") if key == "roi" else 0.0).to(value.dtype)
            wide[key] = torch.cat([value, padding], dim=1)[:, orders[name]]
        moved[f"objects_{name}"] = wide
    again = head(moved)
    for name, order in orders.items():
        assert torch.allclose(out[name], again[name], atol=1e-5)
        if f"attention_{name}" in out:
            padded = torch.cat([out[f"attention_{name}"], torch.zeros(B, 2)], dim=1)
            assert torch.allclose(padded[:, order], again[f"attention_{name}"], atol=1e-6)


@pytest.mark.parametrize("row", CLIP_ROWS)
def test_a_clip_without_objects_is_defined_in_every_row(row):
    head, batch = make_head(row), to_float(make_batch())
    for name in ("verb", "noun"):
        batch[f"objects_{name}"]["mask"][1] = False
    out = head(batch)
    head.loss(out, LABELS).backward()
    assert all(torch.isfinite(value).all() for value in out.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_rows_differ_from_one_another():
    """No two rows compute the same: each switch does something."""
    batch, seen = to_float(make_batch()), {}
    for row in CLIP_ROWS:
        seen[row] = head_outputs(make_head(row), batch)
    for one, other in itertools.combinations(seen, 2):
        assert any(not torch.equal(seen[one][name], seen[other][name]) for name in ("verb", "noun")), (one, other)


def head_outputs(head, batch):
    with torch.no_grad():
        return head(batch)


@pytest.mark.parametrize(
    "row, unchanged",
    [("SAP", "noun"), ("SA + Local Alignment", "verb"), ("SA (Det Feat only)", "verb")],
)
def test_a_switch_of_one_branch_leaves_the_other_as_it_was(row, unchanged):
    batch = to_float(make_batch())
    full, other = head_outputs(make_head("SA"), batch), head_outputs(make_head(row), batch)
    assert torch.equal(full[unchanged], other[unchanged])


@pytest.mark.parametrize("row", [name for name in CLIP_ROWS if name.startswith("SA w/o")] + ["SAP"])
def test_runs_of_one_seed_that_differ_in_a_switch_start_from_the_same_rest(row):
    full, other = make_head("SA").state_dict(), make_head(row).state_dict()
    assert set(other) <= set(full) and all(torch.equal(full[name], other[name]) for name in other)


def test_rows_without_a_part_have_no_parameters_for_it():
    def parts(row):
        return {name.split(".")[1] for name, _ in make_head(row).named_parameters()}

    assert parts("SA") == {"align", "gate", "query", "key", "classify"}
    assert parts("SA w/o CSG") == parts("SA w/o Gating") == {"align", "query", "key", "classify"}
    assert parts("SA w/o ARM") == {"align", "gate", "classify"}
    assert parts("SA w/o CSG & ARM") == {"align", "classify"}


def test_saoa_reads_maps_only_where_it_aligns_locally():
    assert make_head("SA").reads == heads.get_head("saoa").reads
    assert make_head("SAP").reads["verb"] == ("vector",)
    assert make_head("SA + Local Alignment").reads["noun"] == ("spatial", "vector")


def test_wrong_switches_are_refused():
    for row, wrong in (
        ("SA", {"gate": "both"}),
        ("SA", {"attend": "max"}),
        ("SA", {"verb_alignment": "nowhere"}),
        ("SA", {"noun_alignment": ""}),
        ("Baseline", {"streams": "all"}),
        ("Det Feat + Max Pooling", {"pool": "min"}),
        ("Det Feat + Max Pooling", {"noun_window_s": 0.0}),
        ("Det Feat + Max Pooling", {"object_channels": 0}),
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            make_head(row, **wrong)


def test_every_row_can_be_made():
    sizes = {**SIZES, "ipl": {"channels": C}}
    for row in ROWS.values():
        heads.create_head(row.head, verbs=20, nouns=N, **{**sizes[row.head], **row.settings})


# --- from stores ---


def trained(tmp_path, stores, head="saoa", **settings):
    out = tmp_path / "run"
    train_head(head, **stores, out=out, set=settings, epochs=2, progress=False, say=lambda line: None)
    return open_run(out)


@pytest.mark.parametrize("row", [name for name in CLIP_ROWS if name not in ("SA", "Baseline")])
def test_every_row_trains_from_stores(tmp_path, row):
    run = trained(tmp_path, all_stores(tmp_path), ROWS[row].head, **ROWS[row].settings)
    config = run.facts["head"]["config"]
    assert all(config[name] == value for name, value in ROWS[row].settings.items())
    assert len(run.log()) == 2 and run.best_head()[0].config.nouns == 4


def test_local_alignment_of_nouns_needs_the_noun_networks_map(tmp_path):
    stores = all_stores(tmp_path)
    vectors = {"vector": CLIP_ARRAYS["vector"]}
    stores["noun"] = clip_store(tmp_path, "noun_vectors", arrays=vectors)
    trained(tmp_path, stores)  # global alignment does not
    with pytest.raises(UserError, match="spatial"):
        train_head("saoa", **stores, out=tmp_path / "local", set=["noun_alignment=local"], say=lambda line: None)


def test_schedules_are_the_thesis_of_each_backbone(tmp_path):
    """Section 3.3.2: I3D rescales, 1e-3 and 1e-4 in the last 5 of 15 epochs; R-50 goes in as it is, at 1e-4."""
    stores = all_stores(tmp_path)
    for family, lr, last_lr, rescale in (("i3d", 1e-3, 1e-4, True), ("r3d50", 1e-4, 1e-4, False)):
        stores["verb"].manifest.spec["family"] = family
        out = tmp_path / family
        train_head("saoa", **stores, out=out, progress=False, say=lambda line: None)
        facts = open_run(out).facts
        training = facts["training"]
        assert (training["epochs"], training["batch_size"], training["momentum"]) == (15, 32, 0.9)
        assert (training["lr"], training["last_lr"], training["weight_decay"]) == (lr, last_lr, 1e-4)
        assert facts["head"]["config"]["rescale"] is rescale
        rates = [row["lr"] for row in open_run(out).log()]
        assert rates == [lr] * 10 + [last_lr] * 5
