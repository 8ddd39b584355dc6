"""PSN against eq. 5.1 to 5.7 written out anew, and it and its baselines on videos whose useful frames are known."""

import dataclasses

import pytest
import torch

from errors import UserError
from heads import frame_sampling as fs
from heads.psn import CONTEXTS, PSN, PSNConfig
from heads.scsampler import SCSampler, SCSamplerConfig

C, K, WIDTH = 6, 5, 8
LENGTHS = (25, 11, 1, 6)  # frames of each video: full, odd, one alone, even


def make_head(**changes):
    torch.manual_seed(0)
    head = PSN(PSNConfig(**{"channels": C, "classes": K, "width": WIDTH, "sampled": 3, **changes}))
    for name, parameter in head.named_parameters():
        if "norm" in name:  # a non-local block starts as the identity, which would hide it
            torch.nn.init.uniform_(parameter, 0.3, 1.0)
    for buffer in head.buffers():
        if buffer.is_floating_point():
            torch.nn.init.uniform_(buffer, 0.2, 0.9)
    return head


def make_batch(lengths=LENGTHS, n=25, seed=0, padding=0.0):
    g = torch.Generator().manual_seed(seed)
    vector, logits = torch.full((len(lengths), n, C), padding), torch.full((len(lengths), n, K), padding)
    for b, length in enumerate(lengths):
        vector[b, :length] = torch.randn(length, C, generator=g)
        logits[b, :length] = torch.randn(length, K, generator=g) * 2
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    return {"sampler": {"vector": vector, "mask": mask}, "recogniser": {"logits": logits, "mask": mask}}


LABELS = {
    False: torch.tensor([0, 4, 2, 2]),
    True: torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]),
}


# --- eq. 5.1 to 5.7 once more: float64, one video and one frame at a time, no padding anywhere ---


def norm(videos, p, name, train):
    if train:
        frames = torch.cat(videos)
        mean = frames.sum(0) / len(frames)
        variance = ((frames - mean) ** 2).sum(0) / len(frames)
    else:
        mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    scaled = [(x - mean) / (variance + 1e-5).sqrt() for x in videos]
    return [x * p[f"{name}.weight"] + p[f"{name}.bias"] for x in scaled]


def convolved(x, kernel, stride):
    """x (T, C), kernel (out, C, 3): frame j is a sum over its neighbourhood."""
    rows = []
    for j in range(-(-len(x) // stride)):
        near = [(k, stride * j + k - 1) for k in range(3) if 0 <= stride * j + k - 1 < len(x)]
        rows.append(sum(torch.einsum("oc,c->o", kernel[:, :, k], x[i]) for k, i in near))
    return torch.stack(rows)


def spread(x, kernel, length):
    """x (T, C), kernel (C, out, 3): each frame is added to those it was made of; the transpose of `convolved`."""
    rows = [torch.zeros(kernel.shape[1], dtype=x.dtype) for _ in range(length)]
    for j in range(len(x)):
        for k in range(3):
            if 0 <= 2 * j + k - 1 < length:
                rows[2 * j + k - 1] = rows[2 * j + k - 1] + torch.einsum("co,c->o", kernel[:, :, k], x[j])
    return torch.stack(rows)


def layer(videos, p, name, train, step):
    return [x.clamp(min=0) for x in norm([step(x) for x in videos], p, f"{name}.norm", train)]


def crm(videos, p, context, train):
    """Eq. 5.1."""
    if context == "tcn":
        for i in range(3):
            w = p[f"sampler.context.layers.{i}.conv.weight"]
            videos = layer(videos, p, f"sampler.context.layers.{i}", train, lambda x, w=w: convolved(x, w, 1))
    if context == "nonlocal":

        def linear(x, name):
            return torch.einsum("oc,tc->to", p[f"sampler.context.{name}.weight"], x) + p[f"sampler.context.{name}.bias"]

        attended = []
        for x in videos:
            similarity = torch.einsum("ic,jc->ij", linear(x, "query"), linear(x, "key")).exp()
            value = torch.einsum("ij,jc->ic", similarity / similarity.sum(1, keepdim=True), linear(x, "value"))
            attended.append(linear(value, "out"))
        added = norm(attended, p, "sampler.context.norm", train)
        videos = [x + y for x, y in zip(videos, added, strict=True)]
    if context == "ed_tcn":
        e = [videos]
        for i in range(3):
            name = f"sampler.context.encoder.{i}"
            e.append(layer(e[-1], p, name, train, lambda x, w=p[f"{name}.conv.weight"]: convolved(x, w, 2)))
        d = e[3]
        for i in range(3):
            name, goal = f"sampler.context.decoder.{i}", e[2 - i]
            grown = [spread(x, p[f"{name}.conv.weight"], len(y)) for x, y in zip(d, goal, strict=True)]
            d = layer(grown, p, name, train, lambda x: x)
            if i < 2:
                d = [x + y for x, y in zip(d, goal, strict=True)]
        videos = d
    return videos


def equations(p, vectors, logits, config, labels, train):
    """(q of each video, weighted logits of each, loss): eq. 5.1 to 5.7 in the order of the thesis."""
    relations = crm(vectors, p, config.context, train)
    q = [1 / (1 + (-torch.einsum("c,tc->t", p["sampler.score.weight"][0], x)).exp()) for x in relations]
    weighted, losses = [], []
    for qs, lm, y in zip(q, logits, labels, strict=True):
        total = sum(qs[i] * lm[i] for i in range(len(qs)))
        total = total / len(qs) if config.aggregate == "mean" else total
        lc = total.exp() / total.exp().sum()
        target = y / y.sum() if config.multi_label else torch.eye(K, dtype=torch.float64)[y]
        losses.append(-sum(target[k] * lc[k].log() for k in range(K)))
        over = sum(qs) - config.sampled
        losses[-1] = losses[-1] + config.sparsity * (over if over > 0 else 0)
        weighted.append(total)
    return q, weighted, sum(losses) / len(losses)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("aggregate, multi_label", [("mean", False), ("sum", True)])
@pytest.mark.parametrize("context", CONTEXTS)
def test_psn_is_its_equations(context, aggregate, multi_label, train):
    head = make_head(context=context, aggregate=aggregate, multi_label=multi_label).train(train)
    p = {k: v.detach().double().requires_grad_() for k, v in head.state_dict().items() if v.is_floating_point()}
    batch, labels = make_batch(), LABELS[multi_label]
    vectors = [batch["sampler"]["vector"][b, :n].double().requires_grad_() for b, n in enumerate(LENGTHS)]
    logits = [batch["recogniser"]["logits"][b, :n].double() for b, n in enumerate(LENGTHS)]
    q, weighted, loss = equations(p, vectors, logits, head.config, labels, train)
    loss.backward()

    batch["sampler"]["vector"].requires_grad_()
    out = head(batch)
    ours = head.loss(out, {"class": labels})
    ours.backward()
    assert out["score"].shape == (4, 25) and out["class"].shape == (4, K)
    assert out["score"].sum(1).max() > head.config.sampled  # eq. 5.6 has a say
    assert abs(ours.item() - loss.item()) < 1e-5
    for b, n in enumerate(LENGTHS):
        assert (out["score"][b, :n] - q[b]).abs().max() < 1e-5
        assert not out["score"][b, n:].any()
        assert (out["class"][b] - weighted[b]).abs().max() < 1e-5
        grad = batch["sampler"]["vector"].grad[b]
        assert vectors[b].grad.any() and (grad[:n] - vectors[b].grad).abs().max() < 1e-5 and not grad[n:].any()
    for name, parameter in head.named_parameters():
        expected = p[name].grad
        assert (parameter.grad - expected).abs().max() < 1e-5 * max(1, expected.abs().max()), name
        # All logits of an attention shift together, and batch statistics take any constant away.
        indifferent = name.endswith("key.bias") or (train and name.endswith(("out.bias", "value.bias")))
        assert indifferent or expected.abs().max() > 1e-6, name


def test_sparsity_begins_at_the_margin():
    head = make_head(sampled=2, frames=4, sparsity=0.5)
    labels = {"class": torch.zeros(1, dtype=torch.long)}

    def extra(*q):
        out = {"score": torch.tensor([q]), "class": torch.zeros(1, K)}
        return float(head.loss(out, labels) - torch.tensor(K).log())

    assert extra(0.5, 0.5, 0.5, 0.4) == pytest.approx(0, abs=1e-6)
    assert extra(0.9, 0.9, 0.5, 0.5) == pytest.approx(0.4, abs=1e-6)


def test_multi_hot_targets_sum_to_one():
    head, out = make_head(multi_label=True, sparsity=0.0), {"score": torch.zeros(2, 3), "class": torch.randn(2, K)}
    twice = {"class": torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]])}
    expected = -out["class"].log_softmax(1)[0, [0, 2]].mean() / 2  # the video without a label adds nothing
    assert torch.allclose(head.loss(out, twice), expected)
    for wrong in (torch.tensor([0, 1]), torch.ones(2, K + 1)):
        with pytest.raises(ValueError, match="multi_label=True"):
            head.loss(out, {"class": wrong})
    with pytest.raises(ValueError, match="multi_label=False"):
        make_head().loss(out, twice)


# --- shapes, padding, few frames ---


@pytest.mark.parametrize(
    "n, lengths", [(25, (25, 13, 7, 4, 7, 13, 25)), (24, (24, 12, 6, 3, 6, 12, 24)), (1, (1,) * 7)]
)
def test_ed_tcn_lengths(n, lengths):
    context, seen = make_head().eval().sampler.context, [n]
    for part in (*context.encoder, *context.decoder):
        part.register_forward_hook(lambda module, args, out: seen.append(out.shape[2]))
    assert context(torch.randn(2, n, C), torch.ones(2, n, dtype=torch.bool)).shape == (2, n, WIDTH)
    assert tuple(seen) == lengths


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_padding_changes_nothing(context, train):
    """Whatever stands there, and however much of it."""
    results = []
    for n, padding in ((25, 0.0), (25, float("nan")), (38, 7.0)):
        head = make_head(context=context).train(train)
        batch = make_batch(n=n, padding=padding)
        batch["sampler"]["vector"].requires_grad_()
        out = head(batch)
        head.loss(out, {"class": LABELS[False]}).backward()
        grads = [p.grad for p in head.parameters()]
        statistics = [b.clone() for b in head.buffers()]
        seen = batch["sampler"]["vector"].grad
        assert not out["score"][:, 25:].any() and not seen[:, 25:].any()
        picked = head.eval().predict(batch)
        results.append(
            [out["class"], out["score"][:, :25], seen[:, :25], picked["class"], picked["picked"][:, :25]]
            + grads
            + statistics
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.allclose(a.float(), b.float(), atol=1e-6)


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_mask_is_a_full_one(context):
    head, batch = make_head(context=context).eval(), make_batch((25, 25))
    bare = {role: {k: v for k, v in arrays.items() if k != "mask"} for role, arrays in batch.items()}
    assert torch.equal(head(batch)["class"], head(bare)["class"])
    assert torch.equal(head.predict(batch)["class"], head.predict(bare)["class"])


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_video_of_hardly_any_frames(context, train, length):
    head, batch = make_head(context=context).train(train), make_batch((length,), n=max(1, length))
    out = head(batch)
    head.loss(out, {"class": torch.tensor([1])}).backward()
    assert torch.isfinite(out["class"]).all() and all(torch.isfinite(p.grad).all() for p in head.parameters())
    picked = head.predict(batch, 10)
    assert picked["picked"].sum() == length and torch.isfinite(picked["class"]).all()
    if length == 1:
        logits = batch["recogniser"]["logits"][:, 0]
        assert torch.allclose(picked["class"], picked["score"] * logits)
        assert torch.equal(head.predict(batch, 10, weighting=False)["class"], logits)


def test_a_frame_that_only_one_network_saw():
    head, batch = make_head(context="none").eval(), make_batch((25,))
    batch["recogniser"]["mask"] = batch["recogniser"]["mask"].clone()
    batch["recogniser"]["mask"][0, 4] = False
    batch["recogniser"]["logits"][0, 4] = float("nan")
    out = head(batch)
    assert out["score"][0, 4] == 0 and torch.isfinite(out["class"]).all()
    assert not head.predict(batch, 25)["picked"][0, 4]
    batch["recogniser"]["logits"] = batch["recogniser"]["logits"][:, :24]
    with pytest.raises(ValueError, match="same frames"):
        head(batch)


@pytest.mark.parametrize("there", range(8))
def test_a_frame_among_missing_ones_reaches_the_deepest_layer(there):
    context, mask = make_head().eval().sampler.context, torch.arange(8)[None] == there
    seen = []
    context.encoder[2].register_forward_hook(lambda module, args, out: seen.append(out))
    context(torch.randn(1, 8, C), mask)
    assert seen[0].shape[2] == 1 and seen[0].any()


@pytest.mark.parametrize("cls", [PSN, SCSampler])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(cls, dtype):
    head = cls(cls.Config(channels=C, classes=K))
    batch = make_batch()
    halves = {r: {k: v if k == "mask" else v.to(dtype) for k, v in a.items()} for r, a in batch.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = head(halves)
        loss = head.loss(out, {"class": LABELS[False]})
    loss.backward()
    assert out["score"].dtype == torch.float32 and all(torch.isfinite(p.grad).all() for p in head.parameters())
    expected = head(batch)["score"]
    assert torch.allclose(out["score"], expected, atol=3e-2)


def test_light_network_trains_end_to_end():
    """The sampler CNN is made outside and only its output comes in: the loss must reach its weights."""
    torch.manual_seed(0)
    cnn = torch.nn.Sequential(torch.nn.Conv2d(3, C, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    frames, batch, head = torch.randn(4, 25, 3, 8, 8), make_batch(), make_head()
    batch["sampler"]["vector"] = cnn(frames.flatten(0, 1)).view(4, 25, C)
    head.loss(head(batch), {"class": LABELS[False]}).backward()
    assert cnn[0].weight.grad.abs().max() > 0


def test_configs_that_cannot_be():
    right = PSNConfig(channels=C, classes=K)
    expected = {"frames": 25, "sampled": 10, "context": "ed_tcn", "width": 256, "sparsity": 0.1, "aggregate": "mean"}
    assert expected.items() <= dataclasses.asdict(right).items() and right.windows == {}
    wrong = {"channels": 0, "classes": 0, "sampled": 26, "context": "lstm", "width": 0, "aggregate": "max"}
    for name, value in [*wrong.items(), ("sparsity", -0.1), ("sparsity", float("nan"))]:
        with pytest.raises(UserError, match=f"psn: {name}"):
            dataclasses.replace(right, **{name: value})
    with pytest.raises(UserError, match="scsampler: sampled"):
        SCSamplerConfig(channels=C, classes=K, frames=3, sampled=4)
    shapes = {"sampler": {"vector": (1024,)}, "recogniser": {"logits": (200,)}}
    assert PSN.dims(shapes) == {"channels": 1024, "classes": 200}


# --- which frames ---


@pytest.mark.parametrize("m", [1, 3, 10, 25, 40])
def test_select_against_a_sort(m):
    g = torch.Generator().manual_seed(m)
    scores = (torch.rand(6, 25, generator=g) * 8).round() / 8  # many ties
    mask = torch.arange(25) < torch.tensor([25, 25, 12, 3, 1, 0])[:, None]
    picked = fs.select(scores, m, mask)
    for b in range(6):
        there = [i for i in range(25) if mask[b, i]]
        assert picked[b].nonzero()[:, 0].tolist() == sorted(sorted(there, key=lambda i: (-scores[b, i], i))[:m])
    assert torch.equal(fs.select(scores[:2], m), picked[:2])


def test_select_a_number_of_its_own_for_each_video():
    scores = torch.tensor([[0.1, 0.4, 0.3], [0.9, 0.2, 0.5], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    assert fs.select(scores, torch.tensor([1, 2, 3]), mask).tolist() == [
        [False, True, False],
        [True, False, True],
        [True, True, False],
    ]
    for m in (0, torch.tensor([1, 0, 2])):
        with pytest.raises(ValueError, match="at least one frame"):
            fs.select(scores, m)


def test_uniform_takes_the_middle_of_equal_parts():
    mask = torch.arange(25) < torch.tensor([25, 7, 1, 0])[:, None]
    for m in (1, 6, 8, 10, 25, 30):
        picked = fs.uniform(mask, m)
        for b, n in enumerate((25, 7, 1, 0)):
            parts = min(m, n)
            assert picked[b].nonzero()[:, 0].tolist() == [int((i + 0.5) * n / parts) for i in range(parts)]
    holes = torch.tensor([[False, True, True, False, True, True]])  # counted over the frames that there are
    assert fs.uniform(holes, 2).tolist() == [[False, False, True, False, False, True]]
    assert fs.uniform(mask, torch.tensor([2, 3, 5, 1])).sum(1).tolist() == [2, 3, 1, 0]


def test_random_and_dense():
    mask = torch.arange(25) < torch.tensor([25, 7, 1, 0])[:, None]
    draws = torch.stack([fs.random_frames(mask, 10, torch.Generator().manual_seed(s)) for s in range(400)])
    assert (draws.sum(2) == torch.tensor([10, 7, 1, 0])).all() and not (draws & ~mask).any()
    assert torch.equal(draws[3], fs.random_frames(mask, 10, torch.Generator().manual_seed(3)))
    assert (draws[:, 0].float().mean(0) - 0.4).abs().max() < 0.12  # every frame as often as any
    assert torch.equal(fs.dense(mask), mask)


@pytest.mark.parametrize("weighting", [True, False])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_prediction_from_the_picked_frames(weighting, aggregate):
    """What the recogniser says of frames that are not picked is never asked for."""
    head, batch = make_head(aggregate=aggregate).eval(), make_batch()
    out = head.predict(batch, 4, weighting=weighting)
    assert torch.equal(out["picked"], fs.select(out["score"], 4, batch["sampler"]["mask"]))
    batch["recogniser"]["logits"][~out["picked"]] = float("nan")
    assert torch.equal(head.predict(batch, 4, weighting=weighting)["class"], out["class"])
    for b in range(4):
        chosen = out["picked"][b].nonzero()[:, 0]
        q = out["score"][b, chosen] if weighting else torch.ones(len(chosen))
        expected = sum(w * batch["recogniser"]["logits"][b, i] for w, i in zip(q, chosen, strict=True))
        expected = expected / len(chosen) if aggregate == "mean" else expected
        assert torch.allclose(out["class"][b], expected, atol=1e-6)


# --- SCSampler ---


def test_scsampler_scores_frames_by_their_most_certain_class():
    torch.manual_seed(0)
    head, batch = SCSampler(SCSamplerConfig(channels=C, classes=K, sampled=3)), make_batch(padding=float("nan"))
    out = head(batch)
    head.loss(out, {"class": LABELS[False]}).backward()
    assert all(p.grad.any() for p in head.parameters())
    frames = torch.cat([batch["sampler"]["vector"][b, :n] for b, n in enumerate(LENGTHS)]).double()
    normed = (frames - frames.mean(0)) / (frames.var(0, correction=0) + 1e-5).sqrt()
    logits = normed @ head.classify.weight.double().T + head.classify.bias
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    label = torch.cat([y.repeat(n) for y, n in zip(LABELS[False], LENGTHS, strict=True)])
    loss = -probability[torch.arange(len(label)), label].log().mean()
    assert torch.allclose(out["score"][out["mask"]].double(), probability.amax(1), atol=1e-5)
    assert not out["score"][~out["mask"]].any()
    assert torch.allclose(head.loss(out, {"class": LABELS[False]}).double(), loss, atol=1e-5)
    head.eval()
    picked = head.predict(batch)
    assert picked["picked"].sum(1).tolist() == [3, 3, 1, 3]
    chosen = picked["score"][0].topk(3).indices
    assert torch.allclose(picked["class"][0], batch["recogniser"]["logits"][0, chosen].mean(0), atol=1e-6)
    many = SCSampler(SCSamplerConfig(channels=C, classes=K, multi_label=True))
    assert torch.isfinite(many.loss(many(batch), {"class": LABELS[True]}))


# --- a task that sampling solves ---


def videos(n, seed, relevant=5, frames=25, channels=16, classes=4):
    """Videos of which `relevant` frames in a row show the action. The recogniser is right about those and sure of
    something else on the rest; the light network sees faintly which is which, and nothing of the class."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=g)
    first = torch.randint(frames - relevant + 1, (n, 1), generator=g)
    shows = (torch.arange(frames) >= first) & (torch.arange(frames) < first + relevant)
    cue = torch.zeros(channels).index_fill_(0, torch.arange(4), 1.0)
    vector = torch.randn(n, frames, channels, generator=g) + shows[..., None] * cue
    seen = torch.where(shows, label[:, None], torch.randint(classes, (n, frames), generator=g))
    logits = 4 * torch.nn.functional.one_hot(seen, classes) + torch.randn(n, frames, classes, generator=g)
    return {"sampler": {"vector": vector}, "recogniser": {"logits": logits}}, label, shows


def test_trained_psn_beats_uniform_sampling_where_most_frames_are_irrelevant():
    m, (batch, label, _), (test, truth, shows) = 5, videos(1024, seed=0), videos(1024, seed=1)
    logits, every = test["recogniser"]["logits"], torch.ones(shows.shape)

    def accuracy(logits):
        return (logits.argmax(1) == truth).float().mean().item()

    uniform = accuracy(fs.video_logits(logits, every, fs.uniform(every.bool(), m)))
    dense = accuracy(fs.video_logits(logits, every, fs.dense(every.bool())))
    torch.manual_seed(0)
    head = PSN(PSNConfig(channels=16, classes=4, sampled=m, width=32))
    untrained = accuracy(head.eval().predict(test)["class"])
    head.train()
    optimiser = torch.optim.SGD(head.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    for _ in range(8):
        for index in torch.randperm(1024).split(32):
            part = {role: {k: v[index] for k, v in arrays.items()} for role, arrays in batch.items()}
            optimiser.zero_grad()
            head.loss(head(part), {"class": label[index]}).backward()
            optimiser.step()
    out = head.eval().predict(test)
    trained = accuracy(out["class"])
    assert out["picked"].sum(1).eq(m).all()
    assert trained > uniform + 0.3 and trained > untrained + 0.3 and trained > dense + 0.1, (uniform, untrained, dense)
    assert (out["picked"] & shows).sum() > 0.8 * shows.sum()  # by chance 0.2
    assert out["score"].sum(1).mean() < m + 1  # eq. 5.6 has brought the 12.5 of the beginning down
