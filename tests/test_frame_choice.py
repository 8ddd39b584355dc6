"""Stage one for PSN on untrimmed videos: grids, segment centres, and networks that see only what a sampler picks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import media
import numpy as np
import pytest
import torch
import untrimmed
from click.testing import CliRunner
from test_extraction import contents

from cli import main
from errors import UserError
from pipelines import Extraction, extract, plan_extraction, train_backbone, train_head
from pipelines.estimate import describe_job
from pipelines.recogniser_clips import segment_positions
from pipelines.repair import repair
from pipelines.run_folder import open_run
from pipelines.sampler_clips import SharedFrames
from pipelines.sampler_model import load_sampler
from stores import OK, open_store, verify

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]

SQUARE = 'resize={"mode":"squash","size":32}'
HEAVY = {"backbone": "efficientnet_lite0", "weights": ("random:1",), "option": (SQUARE, "logits=true", "classes=3")}
QUICK = {"sampled": 4, "width": 8, "batch_size": 2, "workers": 1}
FRAMES = {**untrimmed.SECONDS, untrimmed.ONE_FRAME: 1}  # of one a second


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return untrimmed.activitynet(tmp_path_factory.mktemp("data"))


def ask(data: Path, *features: Path, **options) -> Extraction:
    settings = {
        "dataset": "activitynet",
        "data": data,
        "features": features,
        "backbone": "shufflenet_v2",
        "weights": ("random:0",),
        "option": (SQUARE,),
        "missing": "skip",
        "batch_size": 4,
    }
    return Extraction(**{**settings, **options})


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """(feature root with both networks on all frames, run of a sampler trained on them)."""
    folder = tmp_path_factory.mktemp("made")
    for request in (ask(data, folder / "f"), ask(data, folder / "f", **HEAVY)):
        (report,) = extract(request)
        assert report.videos_without_rows == {untrimmed.GONE: "not on disk"} and not report.failed
    return folder / "f", train(folder / "f", folder / "psn")


def train(features: Path, out: Path, name="psn", **settings) -> Path:
    stores = {"sampler": "shufflenet_v2", "recogniser": "efficientnet_lite0"}
    given = {role: features / "activitynet" / f"{store}.zarr" for role, store in stores.items()}
    chosen = {**QUICK, **settings}
    chosen = {key: value for key, value in chosen.items() if name == "psn" or key != "width"}
    return train_head(
        name, **given, target="labels", out=out, epochs=1, set=chosen, allow_random=True, progress=False, say=quiet
    )


def quiet(line: str) -> None:
    pass


def frames_of(store) -> dict[str, list[int]]:
    """{video: the instants k of its rows}."""
    found: dict[str, list[int]] = {}
    for row in np.flatnonzero(store.visible).tolist():
        found.setdefault(str(store.videos["name"][store.rows["video"][row]]), []).append(int(store.rows["k"][row]))
    return found


def values_at(store, frames: dict[str, list[int]], array="vector") -> np.ndarray:
    rows = [store.rows_between(video, k - 0.01, k + 0.01)[0] for video in sorted(frames) for k in frames[video]]
    return store.read(array, rows)


# ---- grids -------------------------------------------------------------------------------------------------------


def test_whole_videos_are_rows_of_one_frame_a_second(made):
    light, heavy = (open_store(made[0] / "activitynet" / f"{n}.zarr") for n in ("shufflenet_v2", "efficientnet_lite0"))
    for store in (light, heavy):
        assert {video: len(ks) for video, ks in frames_of(store).items()} == FRAMES
        assert store.manifest.recipe["sampling"] == {"axis": "frame", "fps": 1.0}
        assert (
            np.isnan(store.clips["stop_s"]).all() and len(store.labels["clip"]) == 9 and len(store.events["video"]) == 9
        )
    assert heavy.manifest.arrays["logits"].row_shape == (3,) and "logits" not in light.manifest.arrays


def test_training_draws_from_the_dense_grid_and_tests_in_the_middle(made):
    light = open_store(made[0] / "activitynet" / "shufflenet_v2.zarr")
    shared = SharedFrames(light, open_store(made[0] / "activitynet" / "efficientnet_lite0.zarr"), light.clips)
    count = dict(zip(shared.ids, shared.count.tolist(), strict=True))
    assert count == {**FRAMES, untrimmed.GONE: 0}
    clip = shared.ids.tolist().index("aaaaaaaaaa1")
    own = light.rows_between("aaaaaaaaaa1", 0, 100)
    u = np.random.default_rng(0).uniform(size=(50, 25))
    drawn, mask = shared.at(np.full(50, clip), u)
    k = light.rows["k"][drawn[..., 0]]
    assert mask.all() and len(np.unique(k)) == 40  # of 50 draws, every frame of the video is one
    assert ((k >= np.floor(np.arange(25) * 1.6)) & (k < np.arange(1, 26) * 1.6)).all()
    middle, _ = shared.at(np.array([clip]), np.full((1, 25), 0.5))
    assert (middle[0, :, 0] == own[((np.arange(25) + 0.5) * 40 / 25).astype(int)]).all()
    for name, n in (("bbbbbbbbbb2", 12), (untrimmed.ONE_FRAME, 1)):
        rows, mask = shared.at(np.array([shared.ids.tolist().index(name)]), np.full((1, 25), 0.5))
        assert mask[0].tolist() == [True] * n + [False] * (25 - n)
        assert light.rows["k"][rows[0, :n, 0]].tolist() == list(range(n))


def test_for_psn_both_stores_are_made_on_one_grid(data, tmp_path):
    said = []
    request = ask(data, tmp_path, for_head="psn", option=(), hop=4.0)
    jobs = plan_extraction(request, headers_only=True, announce=said.append)
    assert [job.name for job in jobs] == ["shufflenet_v2", "tsn_resnet50"]
    assert [job.keep for job in jobs] == [("vector",), ("vector", "logits")]
    assert {job.sampling.fps for job in jobs} == {0.25} and len({len(job.rows["k"]) for job in jobs}) == 1
    assert any("its logits name 1000 classes, as no label of activitynet does" in line for line in said)
    jobs = plan_extraction(replace(request, backbone="tsn_resnet101"), headers_only=True)
    assert [job.name for job in jobs] == ["tsn_resnet101", "shufflenet_v2"]
    (job,) = plan_extraction(replace(request, only=True), headers_only=True)
    assert job.name == "shufflenet_v2"
    with pytest.raises(UserError, match="--for psn: i3d_rgb is no network of single frames"):
        plan_extraction(replace(request, backbone="i3d", hop=None), headers_only=True)


# ---- segment centres ---------------------------------------------------------------------------------------------


def test_segment_centres_are_the_frames_of_the_dense_grid(data, made, tmp_path):
    request = ask(data, tmp_path / "f", segments=25)
    (report,) = extract(request)
    store, dense = open_store(report.store), open_store(made[0] / "activitynet" / "shufflenet_v2.zarr")
    assert store.path.stem == "shufflenet_v2_25segments" and store.manifest.dataset["frames"] == {"segments": 25}
    found = frames_of(store)
    for video, n in FRAMES.items():
        centres = segment_positions(np.array([n]), np.full((1, 25), 0.5))[0] if n > 25 else np.arange(n)
        assert found[video] == centres.tolist(), video
    assert store.manifest.recipe == dense.manifest.recipe
    np.testing.assert_allclose(
        store.read("vector", store.ok).astype(np.float32), values_at(dense, found).astype(np.float32), atol=2e-3
    )
    assert (
        "nothing to do" in extract(replace(request, split="train", missing="skip"))[0].summary()
        or report.missing_videos
    )
    # What a lab has of them is copied, whichever frames are chosen: nothing of a row says who is beside it.
    (again,) = extract(ask(data, tmp_path / "g", made[0], segments=25))
    assert again.copied == {str(dense.path): len(store.ok)} and again.computed == 0
    (whole,) = extract(ask(data, tmp_path / "h", tmp_path / "f", name="whole"))
    assert whole.copied == {report.store: len(store.ok)} and whole.computed == len(dense) - len(store.ok)


def test_psn_trains_on_segment_centres(data, made, tmp_path):
    for request in (ask(data, tmp_path, made[0], segments=25), ask(data, tmp_path, made[0], segments=25, **HEAVY)):
        extract(request)
    given = {
        role: tmp_path / "activitynet" / f"{name}_25segments.zarr"
        for role, name in (("sampler", "shufflenet_v2"), ("recogniser", "efficientnet_lite0"))
    }
    light = open_store(given["sampler"])
    shared = SharedFrames(light, open_store(given["recogniser"]), light.clips)
    clip = np.array([shared.ids.tolist().index("aaaaaaaaaa1")])
    assert (shared.at(clip, np.full((1, 25), 0.1))[0] == shared.at(clip, np.full((1, 25), 0.9))[0]).all()
    run = train_head(
        "psn", **given, target="labels", out=tmp_path / "run", epochs=1, set=QUICK, allow_random=True, progress=False,
        say=quiet,
    )  # fmt: skip
    assert (run / "best.safetensors").is_file()


def test_a_store_has_one_choice(data, tmp_path):
    extract(ask(data, tmp_path, segments=3, name="few"))
    with pytest.raises(UserError, match="frames.segments: the store has 3, asked for 4(.|\n)*another --name"):
        extract(ask(data, tmp_path, segments=4, name="few"))
    with pytest.raises(UserError, match='frames: the store has nothing, asked for "all"'):
        extract(ask(data, tmp_path, name="few"))
    with pytest.raises(UserError, match="--segments 3 chooses among single frames: i3d_rgb has the axis clip"):
        plan_extraction(ask(data, tmp_path, segments=3, backbone="i3d", option=(), only=True), headers_only=True)


def test_a_changed_video_is_computed_anew_at_the_frames_that_were_chosen(data, tmp_path):
    own = tmp_path / "data"
    shutil.copytree(data, own)
    (report,) = extract(ask(own, tmp_path / "f", segments=3))
    before = frames_of(open_store(report.store))
    path = own / "activitynet" / "videos" / "v_bbbbbbbbbb2.mp4"
    media.make_video(path, "libx264", 100, rate=5, size=(64, 48), options=media.x264(keyint=5))
    repaired = repair(report.store, data=own, changed=True)
    assert repaired.computed == 3 and repaired.changed_videos == ["bbbbbbbbbb2"]
    store = open_store(report.store)
    assert frames_of(store) == before and (store.status()[store.visible] == OK).all()


# ---- what a sampler picks ----------------------------------------------------------------------------------------


def picks_of(features: Path, run: Path, m: int) -> dict[str, list[int]]:
    """The m frames of the highest scores of the middles of 25 segments, worked out anew."""
    store = open_store(features / "activitynet" / "shufflenet_v2.zarr")
    head = load_sampler(open_run(run), "cpu")[0].head
    picks = {}
    for video, n in FRAMES.items():
        k = ((np.arange(25) + 0.5) * n / 25).astype(int) if n > 25 else np.arange(n)
        vector = torch.zeros(1, 25, 1024)
        vector[0, : len(k)] = torch.from_numpy(values_at(store, {video: k.tolist()}).astype(np.float32))
        mask = (torch.arange(25) < len(k))[None]
        with torch.inference_mode():
            scores = head.scores({"sampler": {"vector": vector, "mask": mask}})[0, : len(k)]
        picks[video] = sorted(k[torch.topk(scores, min(m, len(k))).indices.numpy()].tolist())
    return picks


@pytest.mark.parametrize("m", [None, 1, 25])
def test_only_the_frames_that_are_picked_are_rows(data, made, tmp_path, m):
    features, run = made
    (report,) = extract(ask(data, tmp_path, **HEAVY, sampler=run, sampled=m))
    store, dense = open_store(report.store), open_store(features / "activitynet" / "efficientnet_lite0.zarr")
    assert store.path.stem == "efficientnet_lite0_psn" + ("" if m is None else f"_m{m}")
    picks = picks_of(features, run, m or 4)
    assert frames_of(store) == picks and (store.status()[store.visible] == OK).all()
    assert [len(picks[video]) for video in sorted(picks)] == [min(m or 4, FRAMES[v], 25) for v in sorted(picks)]
    assert report.computed == sum(map(len, picks.values())) and not report.copied
    for array in ("vector", "logits", "n_padded"):
        assert values_at(store, picks, array).tobytes() == values_at(dense, picks, array).tobytes()
    facts = store.manifest.dataset["frames"]
    assert (facts["head"], facts["candidates"], facts["sampled"]) == ("psn", 25, m or 4)
    assert store.manifest.recipe == dense.manifest.recipe
    assert {"dataset": "activitynet", "split": "train", "classes": 3, "targets": ["labels"]} in store.manifest.lineage
    assert not [finding for finding in verify(store.path) if finding.severity == "error"]


def test_rows_that_a_lab_has_are_copied_and_none_is_computed_twice(data, made, tmp_path):
    features, run = made
    (report,) = extract(ask(data, tmp_path, features, **HEAVY, sampler=run))
    assert report.copied == {str(features / "activitynet" / "efficientnet_lite0.zarr"): report.rows}
    assert report.computed == 0
    (more,) = extract(ask(data, tmp_path, **HEAVY, sampler=run, sampled=6))
    assert sum(more.copied.values()) == report.rows and more.computed == more.rows - report.rows  # the best 4 of the 6
    (same,) = extract(ask(data, tmp_path, **HEAVY, sampler=run))
    assert same.computed == 0 and same.done_before == same.rows == report.rows


def test_features_that_no_store_has_are_extracted_first(data, made, tmp_path):
    features, run = made
    moved = tmp_path / "elsewhere"
    shutil.copytree(features, moved)
    own = tmp_path / "run"
    shutil.copytree(run, own)
    facts = json.loads((own / "run.json").read_text())
    facts["stores"]["sampler"]["path"] = str(tmp_path / "gone" / "activitynet" / "shufflenet_v2.zarr")
    (own / "run.json").write_text(json.dumps(facts))
    request = ask(data, tmp_path / "f", **HEAVY, sampler=own)
    # Nothing is left to tell how its light network was made: what is published is something else, and that is said.
    light = {"weights": ("random:1", "shufflenet_v2=random:0")}
    with pytest.raises(UserError, match=r"trained on other features than can be extracted(.|\n)*network.resize"):
        extract(replace(request, **light))
    assert not list(tmp_path.glob("f/activitynet/*.zarr"))
    plan = plan_extraction(replace(request, **light), headers_only=True)
    assert [job.name for job in plan] == ["efficientnet_lite0_run", "shufflenet_v2"]
    found = describe_job(plan[0], None)
    assert found["frames"]["sampled"] == 4 and found["rows"] == 21

    # Found among the features of the lab; those of other frames than it looks at are not taken for them.
    extract(ask(data, moved, segments=5, name="a_few"))
    (report,) = extract(replace(request, features=(tmp_path / "f", moved)))
    picks = picks_of(features, run, 4)
    assert frames_of(open_store(report.store)) == picks

    # The store that it was trained on says how; of this dataset it lacks a video.
    less = tmp_path / "less"
    shutil.copytree(data, less)
    (less / "activitynet/videos/v_bbbbbbbbbb2.mp4").unlink()
    (light_report,) = extract(ask(less, tmp_path / "l"))
    facts["stores"]["sampler"]["path"] = light_report.store
    (own / "run.json").write_text(json.dumps(facts))
    reports = extract(replace(request, features=(tmp_path / "g",)))
    assert [Path(report.store).stem for report in reports] == ["shufflenet_v2", "efficientnet_lite0_run"]
    assert reports[0].copied == {light_report.store: 131} and reports[0].computed == 12
    assert frames_of(open_store(reports[1].store)) == picks


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(data, made, tmp_path, monkeypatch):
    _, run = made
    request = ask(data, tmp_path / "whole", **HEAVY, sampler=run, unit_rows=8)
    (whole,) = extract(request)
    for batches in (0, 1, 3):
        features = tmp_path / f"stopped{batches}"
        with monkeypatch.context() as patch:
            patch.setattr("extract.networks.base.Network.run", dies_after(batches))
            with pytest.raises(KeyboardInterrupt):
                extract(replace(request, features=(features,)))
        (report,) = extract(replace(request, features=(features,)))
        assert report.computed > 0 and report.rows == whole.rows
        assert contents(Path(report.store)) == contents(Path(whole.store))


def dies_after(batches: int):
    from extract.networks.base import Network

    run, left = Network.run, [batches]

    def dying(self, batch):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(self, batch)

    return dying


def test_what_was_picked_once_is_not_picked_again(data, made, tmp_path):
    """Also where the sampler would pick others now, as another machine's rounding may make it: a store keeps its own
    rows, and a video that comes later gets its own."""
    features, run = made
    own = tmp_path / "data"
    shutil.copytree(data, own)
    (report,) = extract(ask(own, tmp_path / "f", **HEAVY, sampler=run, split="train"))
    before = frames_of(open_store(report.store))
    assert set(before) == set(FRAMES) and report.computed == 4 + 4 + 4 + 1  # the others are not of this split
    path = own / "activitynet" / "videos" / f"{untrimmed.GONE}.mp4"
    media.make_video(path, "libx264", 100, rate=5, size=(64, 48), options=media.x264(keyint=10))
    reports = extract(ask(own, tmp_path / "f", **HEAVY, sampler=run))
    after = frames_of(open_store(reports[-1].store))
    assert {video: after[video] for video in before} == before
    assert reports[-1].complete and reports[-1].sealed and set(after) == {*FRAMES, untrimmed.GONE}
    assert len(after[untrimmed.GONE]) == 4 and reports[0].copied and reports[0].computed == 20

    from pipelines.frame_choice import settled

    store = open_store(reports[-1].store)
    (job,) = plan_extraction(ask(own, tmp_path / "f", **HEAVY, sampler=run))
    rows = {name: column.copy() for name, column in job.frames.rows.items()}
    rows["k"] += 1
    other = replace(job, frames=replace(job.frames, rows=rows))
    assert settled(other, store).frames.rows["k"].tolist() == job.frames.rows["k"].tolist()


def test_a_light_network_that_was_trained_with_its_head_picks_too(data, made, tmp_path):
    features, _ = made
    extract(ask(data, tmp_path / "f", backbone="frames", weights=()))
    run = train_backbone(
        "shufflenet_v2", head="psn-sampler", frames=tmp_path / "f/activitynet/frames.zarr", target="labels",
        recogniser=features / "activitynet/efficientnet_lite0.zarr", weights="random:0", option=[SQUARE],
        out=tmp_path / "joint", epochs=1, set={**QUICK, "sampled": 2}, allow_random=True, progress=False, say=quiet,
    )  # fmt: skip
    request = ask(data, tmp_path / "f", features, **HEAVY, sampler=run)
    reports = extract(request)
    names = [Path(report.store).stem for report in reports]
    assert names == ["shufflenet_v2_joint", "efficientnet_lite0_joint"]
    light, heavy = (open_store(report.store) for report in reports)
    assert {video: len(ks) for video, ks in frames_of(heavy).items()} == {
        **dict.fromkeys(FRAMES, 2),
        untrimmed.ONE_FRAME: 1,
    }
    assert light.manifest.lineage[0]["dataset"] == "activitynet" and light.manifest.recipe["sampling"]["fps"] == 1.0
    assert [Path(report.store).stem for report in extract(request)] == ["efficientnet_lite0_joint"]


def test_scsampler_picks_at_a_finer_grid(data, made, tmp_path):
    """Its candidates are instants that both grids have."""
    features, _ = made
    run = train(features, tmp_path / "sc", name="scsampler", frames=8, sampled=3)
    (report,) = extract(ask(data, tmp_path / "f", **HEAVY, sampler=run, hop=0.5))
    store = open_store(report.store)
    found = frames_of(store)
    assert {video: len(ks) for video, ks in found.items()} == {**dict.fromkeys(FRAMES, 3), untrimmed.ONE_FRAME: 1}
    assert all(k % 2 == 0 for ks in found.values() for k in ks) and store.rows["start_s"].max() > 20
    for hop in (2.0, 0.3):
        with pytest.raises(
            UserError, match="looks at 1 frames a second, of which a grid of .* lacks some: give --hop 1"
        ):
            extract(ask(data, tmp_path / "g", features, **HEAVY, sampler=run, hop=hop))


def test_wrong_use_is_told(data, made, tmp_path):
    features, run = made
    for wrong, message in [
        ({"sampled": 3}, "name it with --sampler RUN"),
        ({"sampler": run, "segments": 3}, "leave --segments out"),
        ({"sampler": run, "for_head": "psn"}, "--sampler makes one store"),
        ({"sampler": run, "sampled": 0}, "--sampled must be at least 1"),
        ({"segments": 0}, "--segments must be at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            ask(data, tmp_path, **wrong)
    base = tmp_path / "base"
    base.mkdir()
    (base / "run.json").write_text(
        json.dumps({"format": 1, "kind": "recogniser", "network": {"name": "tsn_resnet50"}, "stores": {}})
    )
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run / "run.json", unfinished)
    for options, message in [
        ({"sampler": tmp_path / "nothing"}, "is no run folder"),
        ({"sampler": base}, "is a training of tsn_resnet50, and does not pick frames"),
        ({"sampler": unfinished}, "has no best.safetensors"),
        ({"sampler": run, "sampled": 26}, "looks at 25 frames of a clip"),
        ({"sampler": run, "backbone": "i3d", "option": (), "only": True}, "i3d_rgb has the axis clip"),
        ({"sampler": run, "weights": ("random:1", "resnet50=random:0")}, "resnet50 does not run here"),
    ]:
        with pytest.raises(UserError, match=message):
            plan_extraction(ask(data, tmp_path, **{**HEAVY, **options}), headers_only=True)
    result = CliRunner().invoke(
        main,
        [
            "plan", "--dataset", "activitynet", "--data", str(data), "--features", str(tmp_path), "--missing", "skip",
            "--backbone", "efficientnet_lite0", "--option", SQUARE, "--sampler", str(run), "--sampled", "2",
            "--device", "none", "--json",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (plan,) = json.loads(result.stdout)
    assert plan["rows"] == 11 and plan["store"].endswith("efficientnet_lite0_psn_m2.zarr")
