"""Pictures of runs beside attention and curves: IPL's assignment maps, confusion matrices, gains, t-SNE."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from synthetic_stores import all_stores
from test_spaced_clips import map_store, trained

from errors import UserError
from heads import get_head, list_heads
from pipelines import assignment_pictures as assignment
from pipelines import confusion_pictures as pictures
from pipelines import plotting, train_head
from pipelines.confusion_pictures import class_gains, confusion
from pipelines.evaluated_clips import ClipScorer
from pipelines.feature_pictures import tsne
from pipelines.pictures import show_frame
from pipelines.run_folder import Run, open_run


def frame_at(video, time_s):
    return np.full((48, 64, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: run folder}: SAOA, another SAOA and pooled objects on the same stores; IPL on maps."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "maps").mkdir()
    trio, quick = all_stores(folder), {"epochs": 2, "batch_size": 8, "progress": False, "say": lambda line: None}
    options = {"set": {"batch_size": quick.pop("batch_size"), "lr": 0.05}, **quick}
    found = {
        "saoa": train_head("saoa", **trio, out=folder / "saoa", **options),
        "other": train_head("saoa", **trio, out=folder / "other", seed=1, **options),
        "pooled": train_head("pooled_objects", **trio, out=folder / "pooled", **options),
        "ipl": trained(map_store(folder / "maps")[0], folder / "ipl"),
    }
    return found


@pytest.fixture
def videos(monkeypatch):
    monkeypatch.setattr(plotting, "load_dataset", lambda *_, **__: None)
    monkeypatch.setattr(plotting, "frames_of", lambda _: frame_at)


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved, for a look at what is on them."""
    kept = []

    def save(figure, path):
        kept.append(figure)
        figure.canvas.draw()
        return path

    for module in (assignment, pictures):
        monkeypatch.setattr(module, "save_figure", save)
    yield kept
    plt.close("all")


def names(paths):
    return [path.name for path in paths]


# --- what is drawn of which run ---


def test_a_picture_of_an_id_with_slashes_is_one_file(tmp_path):
    assert Run(tmp_path, {}).picture_path("strip", "P01/a/b") == tmp_path / "pictures" / "strip_P01_a_b.png"


def test_a_frame_that_is_not_there_is_said_in_its_place():
    _, (one, other) = plt.subplots(1, 2)
    show_frame(one, frame_at("v", 0.0), "#ff0000", 3, alpha=0.5)
    show_frame(other, None, "#00ff00")
    assert [len(axis.images) for axis in (one, other)] == [1, 0] and one.images[0].get_alpha() == 0.5
    assert [[text.get_text() for text in axis.texts] for axis in (one, other)] == [[], ["no frame"]]
    edges = [spine for axis in (one, other) for spine in axis.spines.values()]
    assert [to_hex(spine.get_edgecolor()) for spine in edges] == ["#ff0000"] * 4 + ["#00ff00"] * 4
    assert [spine.get_linewidth() for spine in edges] == [3] * 4 + [0.5] * 4
    plt.close()


def test_every_run_has_its_usual_pictures(runs, videos):
    assert names(plotting.plot_run(runs["saoa"], clips=2)) == [
        "training_curve.png", "attention_clip30.png", "attention_clip39.png",
    ]  # fmt: skip
    assert names(plotting.plot_run(runs["pooled"])) == ["training_curve.png"]
    assert names(plotting.plot_run(runs["ipl"], clips=2)) == [
        "training_curve.png", "assignment_clip30.png", "assignment_clip39.png",
    ]  # fmt: skip


def test_heads_name_their_own_pictures():
    named = {name: getattr(get_head(name), "pictures", ()) for name in list_heads()}
    assert named["psn"] == named["scsampler"] == ("sampler",) and named["mee"] == ("ranking",)
    assert {picture for pictures in named.values() for picture in pictures} <= {*plotting.PICTURES}
    sampler = {"channels": 4, "classes": 3, "frames": 6, "sampled": 2, "width": 4}
    facts = {"kind": "sampler", "head": {"name": "psn", "config": sampler}}
    assert plotting.usual_pictures(Run(Path("run"), facts), None) == ["curve", "sampler"]


def test_pictures_are_asked_for_by_name(runs):
    pytest.importorskip("sklearn")
    wanted = ["confusion", "gain", "features", "gain"]
    paths = plotting.plot_run(runs["saoa"], what=wanted, against=runs["other"])
    assert names(paths) == [
        "confusion_verb.png", "confusion_noun.png", "gain_verb_over_other.png", "gain_noun_over_other.png",
        "features_verb.png", "features_noun.png",
    ]  # fmt: skip
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000
    assert names(plotting.plot_run(runs["ipl"], what=["features"])) == ["features_verb.png"]  # from maps


def test_what_is_drawn_before_an_error_is_told(runs, videos):
    told = []
    with pytest.raises(UserError, match="--against RUN"):
        plotting.plot_run(runs["saoa"], what=["curve", "gain"], drawn=told.append)
    assert names(told) == ["training_curve.png"]


def test_a_csv_of_ones_own_must_be_given(runs):
    with pytest.raises(UserError, match="is of a CSV of your own: say --dataset toy.csv --videos DIR"):
        plotting.plot_run(runs["saoa"], what=["attention"])


def test_what_cannot_be_drawn_is_refused(runs, videos):
    for run, what, match in (
        ("saoa", "sampler", "has no picture 'sampler'"),
        ("saoa", "ranking", "has no picture 'ranking'"),
        ("saoa", "colours", "there is curve, attention"),
        ("saoa", "assignment", "saoa assigns no features"),
        ("pooled", "attention", "pooled_objects attends to no objects"),
        ("saoa", "gain", "--against RUN"),
    ):
        with pytest.raises(UserError, match=match):
            plotting.plot_run(runs[run], what=[what])
    with pytest.raises(UserError, match="split"):
        plotting.plot_run(runs["saoa"], what=["confusion"], split="nowhere")


# --- assignment ---


def test_maps_lie_where_the_geometry_says_over_the_frames_of_their_steps(runs, drawn):
    asked = []

    def look(video, time_s):
        asked.append((video, time_s))
        return frame_at(video, time_s)

    paths = assignment.assignment_pictures(runs["ipl"], frame_at=look, clips=["clip30"])
    store = open_run(runs["ipl"]).open_stores()["verb"]
    row = np.flatnonzero((store.rows["clip"] == 30) & (store.rows["draw"] == 0))[0]
    start, stop = store.rows["start_s"][row], store.rows["stop_s"][row]
    assert names(paths) == ["assignment_clip30.png"]
    assert asked == [("V03", pytest.approx(start + share * (stop - start))) for share in (0.25, 0.75)]  # 2 steps
    axes = [axis for axis in drawn[0].axes if len(axis.images) == 2]
    assert len(axes) == 2
    for axis in axes:  # geometry (3, 3, 0, 0): 3 x 3 cells over the whole frame
        assert axis.images[1].get_extent() == [0, 64, 48, 0]
        assert axis.images[1].get_array().shape == (3, 3)
    scale = {axis.images[1].get_clim() for axis in axes}
    assert len(scale) == 1 and next(iter(scale))[0] == 0


# --- confusion ---


def scorer(truth, guess, classes, counts=None, ids=None):
    """A scorer whose best class of each clip is `guess`, -1: no prediction."""
    scores = np.zeros((len(guess), classes), np.float32)
    scores[np.arange(len(guess)), guess] = 1
    scores[np.asarray(guess) < 0] = np.nan
    clips = SimpleNamespace(
        labels={"verb": np.asarray(truth)}, ids=np.arange(len(truth)) if ids is None else ids, dataset_name="toy"
    )
    counts = {"verb": np.arange(classes)[::-1] if counts is None else np.asarray(counts)}
    return ClipScorer(clips, {"verb": classes}, 1, counts, None, lambda: {"verb": scores}, lambda scores: {})


def test_confusion_counts():
    found = confusion(np.array([0, 0, 2, -1, 2]), np.array([0, 2, -1, 1, 2]), 3)
    assert found.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1]]


def a_run(tmp_path, name="run"):
    return SimpleNamespace(path=tmp_path / name, trained="saoa")


def test_confusion_is_in_order_of_frequency_and_leaves_out_what_never_occurs(tmp_path, drawn):
    truth, guess = [0, 0, 1, 3, 3, 3], [0, 1, 1, 3, 0, -1]
    one = scorer(truth, guess, 5, counts=[2, 9, 7, 4, 1])
    pictures.confusion_pictures(a_run(tmp_path), one, "val", {"verb": ["take", "put", "cut", "mix"]})
    axis = drawn[0].axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["put (1)", "mix (3)", "take (2)"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["put", "mix", "take", "none"]
    shares = np.asarray(axis.images[0].get_array())
    assert np.allclose(shares, [[1, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5, 0]])


def test_many_classes_have_no_names(tmp_path, drawn):
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 60, 400), rng.integers(0, 60, 400)
    pictures.confusion_pictures(a_run(tmp_path), scorer(truth, guess, 60), "val", {})
    axis = drawn[0].axes[0]
    assert "60 classes" in axis.get_ylabel() and not axis.texts


# --- gains ---


def test_gains_by_class():
    truth, ours, theirs = (np.array(x) for x in ([0, 0, 0, 1, 1, -1], [0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]))
    assert class_gains(truth, ours, theirs, 3).tolist() == [[3, 1, 1], [2, 1, 0], [0, 0, 0]]


def test_of_many_classes_the_largest_gains_and_losses_are_shown(tmp_path, drawn):
    truth = np.repeat(np.arange(60), 2)
    ours = np.where(truth < 30, truth, 0)
    theirs = np.where(truth >= 50, truth, 1)
    names = {"verb": [f"v{i}" for i in range(60)]}
    one, other = scorer(truth, ours, 60), scorer(truth, theirs, 60)
    pictures.gain_pictures(a_run(tmp_path), one, a_run(tmp_path, "old"), other, "val", names)
    axis = drawn[0].axes[0]
    shown = [text.get_text() for text in axis.get_yticklabels()]
    assert len(shown) == 40 and all(f"v{i} (2)" in shown for i in range(50, 60))
    assert "20 classes between" in [text.get_text() for text in axis.texts]
    assert "run 50.0 %, old 18.3 %" in drawn[0].get_suptitle()


def test_runs_on_other_clips_or_labels_are_not_compared(tmp_path):
    one, other = scorer([0, 1], [0, 1], 2), scorer([0, 1], [0, 1], 2, ids=np.array([5, 6]))
    with pytest.raises(UserError, match="not about the same clips"):
        pictures.gain_pictures(a_run(tmp_path), one, a_run(tmp_path, "old"), other, "val", {})


# --- t-SNE ---


def test_tsne_keeps_clusters_apart():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    centres = 20 * np.eye(3, 16)
    features = np.repeat(centres, 15, axis=0) + rng.normal(size=(45, 16))
    places, label = tsne(features), np.repeat(np.arange(3), 15)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(45)
    assert (label[distances.argmin(1)] == label).all()
    assert np.array_equal(places, tsne(features))
    assert tsne(features[:3]).shape == (3, 2)
