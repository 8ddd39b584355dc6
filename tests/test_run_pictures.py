"""Pictures of runs beside attention and curves: IPL's assignment maps, confusion matrices, gains, t-SNE."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from frame_samples import colour_dataset, colour_frames, frames_request
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from synthetic_stores import all_stores
from test_spaced_clips import map_store, trained

from errors import UserError
from heads import get_head, list_heads
from pipelines import assignment_pictures as assignment
from pipelines import confusion_pictures as pictures
from pipelines import extract, plotting, train_head
from pipelines.base_training import train_backbone
from pipelines.confusion_pictures import class_gains, confusion
from pipelines.evaluated_clips import ClipScorer
from pipelines.evaluation import open_scorer
from pipelines.feature_pictures import tsne
from pipelines.pictures import attention_pictures, show_frame, title_of_clip
from pipelines.run_folder import Run, open_run
from pipelines.shown_clips import shown_clips

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]


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


# --- of networks that were trained with their heads ---


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """{name: run folder}: IPL and SAOA trained with their networks on a store of frames, of which these see the middle;
    IPL's on videos; a network alone."""
    folder = tmp_path_factory.mktemp("joint")
    csv, videos = colour_dataset(folder)
    frames = colour_frames(folder, option=('resize={"mode":"short_side","size":40}',))
    boxes = folder / "boxes.csv"
    places = ("0.1,0.1,0.6,0.7", "0.4,0.3,0.9,0.95")
    lines = [f"v{v},{t / 2},{place}" for v in range(4) for t in range(10) for place in places]
    boxes.write_text("\n".join(["video,time,x1,y1,x2,y2", *lines]) + "\n")
    request = frames_request(folder, option=('resize={"mode":"squash","size":64}',))
    network = {"backbone": "efficientnet_lite0", "boxes": str(boxes), "weights": ("random:0",)}
    (objects,) = extract(replace(request, **network))

    def trained(name, frames=frames, settings=None, **options):
        resize = 'resize={"mode":"short_side","size":40,"crop":32}'
        return train_backbone(
            "small3d", weights="random:0", option=[resize, "clip_len=16", "fps=25"], out=folder / name, frames=frames,
            set={"epochs": 2, "batch_size": 6, "last_epochs": 1, "workers": 1, **(settings or {})},
            progress=False, say=lambda line: None, **options,
        )  # fmt: skip

    return {
        "ipl": trained("ipl", head="ipl", settings={"top_k": 2}),
        "saoa": trained("saoa", head="saoa", objects=objects.store, settings={"roi_size": 3}),
        "decoded": trained("decoded", "decode", {"top_k": 2}, head="ipl", dataset=str(csv), videos=videos),
        "alone": trained("alone"),
        "place": {"dataset": str(csv), "videos": videos},
        "frames": frames,
    }


CLIPS = ("v3_0.000_0.800", "v3_4.000_4.800")


@pytest.mark.parametrize("name, kind", [("ipl", "assignment"), ("saoa", "attention"), ("decoded", "assignment")])
def test_a_network_trained_with_its_head_has_all_pictures_of_the_head(joint, name, kind):
    place = joint["place"] if name == "decoded" else {}
    paths = plotting.plot_run(joint[name], clips=2, **place)
    assert names(paths) == ["training_curve.png", *(f"{kind}_{clip}.png" for clip in CLIPS)]
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000
    paths = plotting.plot_run(joint[name], what=["confusion", "gain"], against=joint["alone"], **place)
    assert names(paths) == [
        "confusion_verb.png", "confusion_noun.png", "gain_verb_over_alone.png", "gain_noun_over_alone.png",
    ]  # fmt: skip


def test_frames_of_a_store_may_stand_in_for_the_videos(joint):
    stores = {"frames": joint["frames"]}
    assert len(plotting.plot_run(joint["decoded"], what=["assignment"], clips=2, stores=stores)) == 2


def test_what_such_a_run_does_not_have_is_refused(joint):
    for run, what, match in (
        ("ipl", "attention", "ipl attends to no objects"),
        ("saoa", "assignment", "saoa assigns no features"),
        ("alone", "attention", "is a base training .small3d., without a head; extract features with --weights"),
        ("alone", "assignment", "without a head"),
        ("ipl", "features", "trained on no store of clips' features.*extract .* --weights .*ipl"),
        ("saoa", "sampler", "small3d with saoa has no picture 'sampler'"),
        ("ipl", "ranking", "small3d with ipl has no picture 'ranking'"),
    ):
        with pytest.raises(UserError, match=match):
            plotting.plot_run(joint[run], what=[what])
    with pytest.raises(UserError, match="no clip is in split 'test'"):
        plotting.plot_run(joint["ipl"], what=["assignment"], split="test")
    with pytest.raises(UserError, match="clip 'x' is not in this split"):
        attention_pictures(joint["saoa"], frame_at=frame_at, clips=["x"])
    with pytest.raises(UserError, match="its ipl was trained together with small3d and reads that network's maps"):
        open_run(joint["ipl"]).best_head()


def test_pictures_show_the_model_that_the_figures_are_of(joint):
    scorer = open_scorer(open_run(joint["saoa"]), "val", progress=False)
    shown = shown_clips(joint["saoa"], "attention", "", 6)
    place = {clip: i for i, clip in enumerate(scorer.clips.ids)}
    order = [place[clip.words[0]] for clip in shown.clips]
    assert sorted(order) == list(range(6))
    for label, values in scorer.score().items():
        assert np.allclose(shown.out[label], values[order], atol=1e-5)
    for label in ("noun", "verb"):
        mask = shown.batch[f"objects_{label}"]["mask"]
        attention = shown.out[f"attention_{label}"]
        assert mask.any() and np.allclose(attention.sum(1), 1, atol=1e-5) and (attention[~mask] == 0).all()


def test_maps_of_a_network_lie_over_what_it_saw(joint, drawn):
    asked = []

    def look(video, time_s):
        asked.append((video, time_s))
        return np.full((40, 53, 3), 90, np.uint8)

    assignment.assignment_pictures(joint["ipl"], frame_at=look, clips=[CLIPS[1]])
    # 16 frames of 25 a second around the middle of [4, 4.8), in 4 steps of the map
    assert [video for video, _ in asked] == ["v3"] * 4
    times = np.array([time for _, time in asked])
    assert np.allclose(np.diff(times), 0.16) and abs(times.mean() - 4.4) <= 1 / 25
    axes = [axis for axis in drawn[0].axes if len(axis.images) == 2]
    assert len(axes) == 4
    for axis in axes:  # the middle 32 x 32 of 53 x 40 pixels
        left, right, bottom, top = axis.images[1].get_extent()
        assert (right - left, bottom - top) == (pytest.approx(32), pytest.approx(32))
        assert left == pytest.approx((53 - 32) / 2, abs=0.6) and top == pytest.approx(4)
        assert axis.images[1].get_array().shape == (2, 2)
    head = drawn[0].get_suptitle()
    assert head.startswith(f"{CLIPS[1]}     truth: verb ")


def test_frames_of_another_store_are_no_frames_of_the_run(joint):
    other = colour_frames(Path(joint["frames"]).parents[2], name="frames_other")
    with pytest.raises(UserError, match="is not what .* was trained on .frames."):
        plotting.plot_run(joint["ipl"], what=["assignment"], stores={"frames": other})


def test_a_title_that_is_too_long_for_its_figure_is_on_several_lines():
    words = ("clip", "truth: open cupboard", "predicted: close drawer")
    for inches, lines in ((12, 1), (3, 3)):
        figure = plt.figure(figsize=(inches, 2))
        title_of_clip(figure, words)
        assert len(figure.get_suptitle().splitlines()) == lines
        figure.canvas.draw()
        place = figure._suptitle.get_window_extent()
        assert place.x0 >= 0 and place.x1 <= figure.bbox.width
        plt.close(figure)


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


def test_clips_of_several_labels_have_no_confusion(tmp_path):
    one = scorer([0, 1], [0, 1], 2)
    one.clips.labels.clear()
    with pytest.raises(UserError, match="its clips have no single verb each"):
        pictures.confusion_pictures(a_run(tmp_path), one, "val", {})


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
