"""IPL against its equations (4.1 to 4.5) written out with loops, its invariances, and that it learns."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from test_spaced_clips import map_store

import heads
from errors import UserError
from extract.networks import network_spec
from heads.ipl import IPL, IPLConfig, assign
from heads.layers import cosine_logits, vlad
from pipelines import train_head
from pipelines.base_training import train_backbone
from pipelines.run_folder import open_run

V, N, C = 7, 11, 12
SWITCHES = [
    {},
    {"top_k": 1},
    {"top_k": V},
    {"background": False},
    {"independent": True},
    {"independent": True, "background": False},
]
LABELS = {"verb": torch.tensor([0, 6, 2]), "noun": torch.tensor([10, 0, 4])}


def make_head(seed=0, **changes):
    """A head whose batch norm and scales are not at their first values, so that each of them shows."""
    torch.manual_seed(seed)
    head = IPL(IPLConfig(**{"verbs": V, "nouns": N, "channels": C, "top_k": 3, **changes}))
    with torch.no_grad():
        norm = head.reduce[1]
        for value, number in ((norm.weight, 1.3), (norm.bias, 0.2), (norm.running_mean, 0.05), (norm.running_var, 0.7)):
            value.fill_(number)
        head.noun_scale.fill_(7.0)
    return head


def make_maps(*shape, b=3, seed=5):
    return torch.randn(b, *(shape or (2, 3, 4)), C, generator=torch.Generator().manual_seed(seed))


def batch_of(maps):
    return {"verb": {"map": maps}}


# --- the equations, straight from the page: no code of the head's ---


def cosine_by_hand(feature, weights, scale):
    """Eq. 4.2 without the softmax, for one feature."""
    return torch.stack(
        [scale * (feature * w).sum() / ((feature**2).sum().sqrt() * (w**2).sum().sqrt()) for w in weights]
    )


def assign_by_hand(z, centres, background):
    """Eq. 4.3 for one clip: z (L, C). Returns A (L, M)."""
    prototypes = [*centres] if background is None else [*centres, *background]
    raised = [[torch.exp((row * c).sum()) for c in prototypes] for row in z]
    return torch.stack([torch.stack([e / sum(row) for e in row[: len(centres)]]) for row in raised])


def group_by_hand(z, a, centre):
    """Eq. 4.4 and 4.5 for one prototype: z (L, C), a (L,), centre (C,)."""
    g = sum(a[i] * z[i] for i in range(len(z)))
    return g - sum(a[k] * centre for k in range(len(z)))


def ipl_by_hand(p, config, maps, training):
    """All of section 4.2, clip by clip. Returns verb logits, noun logits and the assignment."""
    own = p["centres"] if config.independent else p["prototypes"]
    verbs, reduced, assignments = [], [], []
    for clip in maps:
        z = clip.reshape(-1, C)  # Z of eq. 4.3
        v = sum(z) / len(z)  # eq. 4.1
        q = cosine_by_hand(v, p["prototypes"], p["verb_scale"])
        a = assign_by_hand(z, own, p.get("background"))
        order = range(len(own)) if config.independent else sorted(range(len(q)), key=lambda i: -q[i].item())
        kept = list(order) if config.independent else list(order)[: config.top_k]
        groups = [group_by_hand(z, a[:, i], own[i]) for i in kept]
        unit = torch.stack([g / (g**2).sum().sqrt() for g in groups])  # n', (K, C)
        reduced.append(torch.einsum("k,kc->c", p["reduce.0.weight"][0, :, 0], unit))
        verbs.append(q)
        assignments.append(a)
    reduced = torch.stack(reduced)
    mean, var = (reduced.mean(), ((reduced - reduced.mean()) ** 2).mean()) if training else (0.05, 0.7)
    enhanced = (reduced - mean) / (var + 1e-5) ** 0.5 * p["reduce.1.weight"] + p["reduce.1.bias"]
    n = torch.where(enhanced > 0, enhanced, 0)
    nouns = [cosine_by_hand(row, p["noun_weights"], p["noun_scale"]) for row in n]
    return torch.stack(verbs), torch.stack(nouns), torch.stack(assignments)


def cross_entropy_by_hand(logits, labels):
    return sum(torch.log(torch.exp(row).sum()) - row[y] for row, y in zip(logits, labels, strict=True)) / len(labels)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_ipl_is_its_equations(changes, training):
    """Outputs, loss and all gradients, the map's too."""
    head = make_head(**changes).train(training)
    maps = make_maps().requires_grad_()
    out = head(batch_of(maps))
    loss = head.loss(out, LABELS)
    loss.backward()

    by_hand = {name: value.detach().double().requires_grad_() for name, value in head.named_parameters()}
    theirs = maps.detach().double().requires_grad_()
    verb, noun, assignment = ipl_by_hand(by_hand, head.config, theirs, training)
    their_loss = cross_entropy_by_hand(verb, LABELS["verb"]) + cross_entropy_by_hand(noun, LABELS["noun"])
    their_loss.backward()

    for ours, expected in ((out["verb"], verb), (out["noun"], noun), (out["assignment"].flatten(1, 3), assignment)):
        assert (ours.double() - expected).abs().max() < 1e-5
    assert abs(loss.item() - their_loss.item()) < 1e-5
    gradients = {name: (value.grad, by_hand[name].grad) for name, value in head.named_parameters()}
    for name, (ours, expected) in {**gradients, "map": (maps.grad, theirs.grad)}.items():
        # One group alone: the batch norm leaves nothing of its weight but the sign.
        assert expected.abs().max() > 1e-4 or (name == "reduce.0.weight" and head.config.groups == 1), name
        assert (ours.double() - expected).abs().max() < 1e-5 * max(1, expected.abs().max()), name


def test_pieces_are_their_equations():
    g = torch.Generator().manual_seed(2)
    z, centres, background = (torch.randn(*shape, generator=g) for shape in ((2, 5, C), (4, C), (1, C)))
    for last in (background, None):
        a = assign(z, centres, last)
        for b in range(2):
            assert (a[b] - assign_by_hand(z[b], centres, last)).abs().max() < 1e-5
            for i in range(4):
                expected = group_by_hand(z[b], a[b, :, i], centres[i])
                assert (vlad(z, a, centres)[b, i] - expected).abs().max() < 1e-5
                assert (vlad(z, a, centres.expand(2, 4, C))[b, i] - expected).abs().max() < 1e-5
            expected = cosine_by_hand(z[b, 0], centres, 3.0)
            assert (cosine_logits(z[b, 0], centres, torch.tensor(3.0)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_gradients_are_finite_differences(changes):
    head = make_head(**changes).double()
    names, values = zip(*head.named_parameters(), strict=True)

    def outputs(maps, *values):
        out = torch.func.functional_call(head, dict(zip(names, values, strict=True)), (batch_of(maps),))
        return out["verb"], out["noun"]

    maps = make_maps(1, 2, 2, b=2).double().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (maps, *values), fast_mode=True)  # along random directions


# --- what each part does ---


def test_background_takes_what_the_verbs_do_not():
    head = make_head()
    maps = make_maps()
    with torch.no_grad():
        head.background.copy_(20 * maps[0, 1, 2, 3])
    out = head(batch_of(maps))
    assert out["assignment"][0, 1, 2, 3].sum() < 1e-6
    assert (out["assignment"].sum(-1) <= 1 + 1e-6).all()
    full = make_head(background=False)(batch_of(maps))["assignment"]
    assert torch.allclose(full.sum(-1), torch.ones(3, 2, 3, 4))


def test_selected_is_the_sum_over_the_best_verbs():
    head, maps = make_head(top_k=2), make_maps()
    out = head(batch_of(maps))
    for b in range(3):
        best = sorted(range(V), key=lambda i: -out["verb"][b, i].item())[:2]
        assert torch.allclose(out["selected"][b], out["assignment"][b][..., best].sum(-1))
    out = make_head(independent=True)(batch_of(maps))
    assert torch.allclose(out["selected"], out["assignment"].sum(-1))


def test_prototypes_are_not_detached():
    """The nouns' loss alone trains the prototypes, the background and the map, and not the verbs' scale."""
    head, maps = make_head(), make_maps().requires_grad_()
    torch.nn.functional.cross_entropy(head(batch_of(maps))["noun"], LABELS["noun"]).backward()
    assert head.prototypes.grad.abs().sum() > 0 and head.background.grad.abs().sum() > 0 and maps.grad.abs().sum() > 0
    assert head.verb_scale.grad is None


def test_switches_leave_the_rest_of_the_start_as_it_was():
    torch.manual_seed(3)
    full = IPL(IPLConfig(V, N, C))
    for changes in SWITCHES:
        torch.manual_seed(3)
        other = IPL(IPLConfig(V, N, C, **changes))
        for name in ("prototypes", "noun_weights"):
            assert torch.equal(getattr(full, name), getattr(other, name))


def test_start_is_that_of_the_cosine_classifier_the_thesis_cites():
    torch.manual_seed(0)
    head = IPL(IPLConfig(verbs=97, nouns=300, channels=1024))
    for vectors in (head.prototypes, head.noun_weights):
        assert abs(vectors.std().item() * math.sqrt(1024 / 2) - 1) < 0.02
    assert head.verb_scale.item() == head.noun_scale.item() == 10
    extra = sum(p.numel() for p in head.reduce.parameters())
    assert extra == 5 + 2  # "the number of additional parameters introduced by f_w is negligible"


# --- any map ---


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 7, 7), (4, 8, 8), (3, 2, 5)])
def test_any_size_of_map(shape):
    out = make_head()(batch_of(make_maps(*shape)))
    assert out["verb"].shape == (3, V) and out["noun"].shape == (3, N)
    assert out["assignment"].shape == (3, *shape, V) and out["selected"].shape == (3, *shape)
    assert all(torch.isfinite(value).all() for value in out.values())
    assert not out["assignment"].requires_grad and not out["selected"].requires_grad


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_permuting_positions_permutes_the_assignment_and_nothing_else(changes):
    head, maps = make_head(**changes), make_maps()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    moved = maps.flatten(1, 3)[:, order].view_as(maps)
    out, again = head(batch_of(maps)), head(batch_of(moved))
    for name in ("verb", "noun"):
        assert torch.allclose(out[name], again[name], atol=1e-5)
    assert torch.allclose(out["assignment"].flatten(1, 3)[:, order], again["assignment"].flatten(1, 3), atol=1e-6)
    assert torch.allclose(out["selected"].flatten(1)[:, order], again["selected"].flatten(1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_computed_in_float32(dtype):
    head, maps = make_head(), make_maps().to(dtype)
    expected = head(batch_of(maps.float()))
    half = maps.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = head(batch_of(half))
        head.loss(out, LABELS).backward()
    for name, value in out.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name])
    assert half.grad.dtype == dtype and half.grad.abs().sum() > 0


def test_a_clip_without_any_signal_is_defined():
    head, maps = make_head(), make_maps()
    maps[1] = 0
    out = head(batch_of(maps))
    head.loss(out, LABELS).backward()
    assert all(torch.isfinite(value).all() for value in out.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


# --- the config ---


def test_config_is_frozen_and_checked():
    config = IPLConfig(verbs=97, nouns=300, channels=1024)
    assert (config.top_k, config.background, config.independent, config.scale) == (5, True, False, 10.0)
    assert config.groups == 5 and config.windows == {}
    with pytest.raises(FrozenInstanceError):
        config.top_k = 3
    for wrong, match in (
        ({"top_k": 98}, "top_k=98.*only 97 verbs"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.5}, "top_k.*2.5"),
        ({"channels": 0}, "channels"),
        ({"nouns": True}, "nouns"),
        ({"background": 1}, "background"),
        ({"scale": 0.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"scale": "ten"}, "scale"),
        ({"k": 5}, "k"),
    ):
        with pytest.raises(UserError, match=match):
            heads.create_head("ipl", **{"verbs": 97, "nouns": 300, "channels": 1024, **wrong})
    # Without a selection there is nothing that top_k could ask too much of.
    assert IPLConfig(verbs=3, nouns=4, channels=8, independent=True).groups == 3


def test_it_reads_one_full_map():
    assert IPL.reads == {"verb": ("map",)}
    assert IPL.dims({"verb": {"map": (8, 7, 7, 1024)}}) == {"channels": 1024}


# --- its training ---

# Section 4.2.4: network, epochs, learning rate of every one of them.
SCHEDULES = [
    ("i3d", 30, [6e-3] * 20 + [6e-4] * 10),
    ("r2plus1d34", 20, [4e-4] * 9 + [4e-5] * 9 + [4e-6] * 2),
]

SMALL = {"top_k": 2}  # of two or three verbs
OWN_NETWORK = """
from dataclasses import replace

from extract.networks import network_spec
from extract.networks.small_model import tiny3d_network


def small(*, clip_len=8, stride=1, fps=12.5, resize=None):
    resize = resize or dict(mode="squash", size=32)
    tiny = network_spec("tiny3d", channels=8, clip_len=clip_len, stride=stride, fps=fps, resize=resize)
    return replace(tiny, name="small", family="{family}", builder=tiny3d_network)
"""


def test_both_streams_of_i3d_have_one_schedule():
    assert network_spec("i3d_flow").family == network_spec("i3d").family


def check_schedule(run, epochs, rates):
    training = open_run(run).facts["training"]
    assert (training["optimiser"], training["momentum"], training["weight_decay"]) == ("sgd", 0.9, 5e-4)
    assert (training["batch_size"], training["epochs"]) == (32, epochs)
    assert [row["lr"] for row in open_run(run).log()] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize(("network", "epochs", "rates"), SCHEDULES)
def test_schedules_of_frozen_features_are_the_thesis_of_each_network(tmp_path, one_thread, network, epochs, rates):
    store, _ = map_store(tmp_path)
    store.manifest.spec["family"] = network_spec(network).family
    out = train_head("ipl", verb=store, out=tmp_path / "run", set=SMALL, progress=False, say=lambda line: None)
    check_schedule(out, epochs, rates)


@pytest.mark.parametrize(("network", "epochs", "rates"), SCHEDULES)
def test_schedules_end_to_end_are_the_thesis_of_each_network(tmp_path, one_thread, colours, network, epochs, rates):
    """On a small network of the same family."""
    (tmp_path / "net.py").write_text(OWN_NETWORK.format(family=network_spec(network).family))
    out = train_backbone(
        f"py:{tmp_path}/net.py:small",
        head="ipl",
        weights="random:0",
        features=[colours / "features"],
        out=tmp_path / "run",
        set=SMALL,
        progress=False,
        say=lambda line: None,
    )
    check_schedule(out, epochs, rates)
    assert open_run(out).facts["training"]["flip"] is True  # thesis section 4.3.2


# --- it learns ---


def kitchen(n, seed, clutter):
    """n clips of 2 x 4 x 4 positions: at one of them the sum of a verb's and a noun's direction, at `clutter` others
    another noun's alone, noise everywhere. Returns maps, labels and the places (n, 1 + clutter), the handled first."""
    verbs, nouns, channels = 6, 8, 64
    directions = 3 * torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(99)))[0]
    g = torch.Generator().manual_seed(seed)
    verb = torch.randint(verbs, (n,), generator=g)
    things = torch.rand(n, nouns, generator=g).argsort(1)[:, : clutter + 1]
    places = torch.rand(n, 32, generator=g).argsort(1)[:, : clutter + 1]
    maps = 0.15 * torch.randn(n, 32, channels, generator=g)
    rows = torch.arange(n)
    maps[rows[:, None], places] += directions[verbs + things]
    maps[rows, places[:, 0]] += directions[verb]
    return maps.view(n, 2, 4, 4, channels), {"verb": verb, "noun": things[:, 0]}, places


def noun_accuracy(head, view, lr, seed, clutter):
    """Of 300 steps of SGD on 1,024 clips, on 512 others. `view`: maps -> batch. Returns that, and head and clips."""
    maps, labels, _ = kitchen(1024, seed, clutter)
    optimiser = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    g = torch.Generator().manual_seed(seed)
    for step in range(300):
        if step == 200:
            optimiser.param_groups[0]["lr"] = lr / 10
        i = torch.randint(len(maps), (32,), generator=g)
        loss = head.loss(head(view(maps[i])), {name: values[i] for name, values in labels.items()})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test = kitchen(512, 1000 + seed, clutter)
    with torch.no_grad():
        out = head.eval()(view(test[0]))
    return (out["noun"].argmax(1) == test[1]["noun"]).float().mean().item(), out, test


def pooled(maps):
    vector = maps.mean((1, 2, 3))
    return {"verb": {"vector": vector}, "noun": {"vector": vector}}


@pytest.mark.parametrize("seed", [0, 1])
def test_ipl_finds_the_handled_object_in_clutter_where_pooling_cannot(seed):
    sizes = {"verbs": 6, "nouns": 8}
    gap = {"verb_channels": 64, "noun_channels": 64}
    torch.manual_seed(seed)
    by_pooling = {
        clutter: noun_accuracy(heads.create_head("whole_frame", **sizes, **gap), pooled, 0.03, seed, clutter)[0]
        for clutter in (0, 3)
    }
    torch.manual_seed(seed)
    head = IPL(IPLConfig(**sizes, channels=64))
    by_ipl, out, (_, labels, places) = noun_accuracy(head, batch_of, 0.02, seed, clutter=3)
    assert by_pooling[0] > 0.9  # the baseline works where nothing stands beside the handled object
    assert by_pooling[3] < 0.45  # four nouns are there, and the mean does not say which is handled
    assert by_ipl > 0.9
    # Where it looks: at the place of the verb, for the right verb.
    assignment = out["assignment"].flatten(1, 3)
    at_handled = assignment[torch.arange(512), places[:, 0]]
    assert (at_handled.argmax(1) == labels["verb"]).float().mean() > 0.85
