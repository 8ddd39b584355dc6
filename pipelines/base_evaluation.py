"""The best checkpoints of base trainings, opened again: the figures that their validation takes, of any split."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np

from errors import UserError
from extract.datasets import load_dataset
from extract.networks import create_network
from extract.networks.packages import need_package
from extract.weights import trained_beside
from pipelines.backbone_runs import open_backbone
from pipelines.base_training import prior_of
from pipelines.detector_training import (
    DetectorConfig,
    FramesOfSplit,
    boxes_of,
    detection_figures,
    join_boxes,
    readable_frames,
    validated_network,
)
from pipelines.devices import pick_device
from pipelines.evaluated_clips import ClipScorer, EvaluatedClips, class_counts
from pipelines.evaluation import check_lineage, clips_averaged, covered_accuracies, write_figures
from pipelines.frame_reader import FrameReader
from pipelines.labelled_clips import (
    ClipSource,
    clip_source,
    source_of,
)
from pipelines.recogniser_clips import ClipRows, FrameInputs, VectorInputs, targets_of
from pipelines.recogniser_training import RecogniserConfig, segment_scores
from pipelines.request import TEST_CLIPS
from pipelines.run_folder import Run

__all__ = ["backbone_scorer", "detector_figures_of", "recogniser_scorer"]


def backbone_scorer(run: Run, split: str, *, stores, place, device, allow_incomplete, progress) -> ClipScorer:
    """A run of train-backbone with linear classifiers or a head: centre clips of its frames; of a head that averages,
    the mean over `TEST_CLIPS` evenly spaced clips, those at which `extract --test-clips` puts them."""
    opened, targets = open_backbone(run, stores=stores, place=place, device=device), run.facts["targets"]
    source, clips, model = opened.source, opened.clips, opened.model
    labels, batch = clips.labels, opened.config.at_once
    own = _evaluated(source, labels, source.split(split), split)
    fitted = source.split(run.facts["fit"])
    prior = prior_of(labels, fitted, targets)

    averages = getattr(getattr(model, "head", None), "averages", False)
    windows = clips.test_windows(own.which, TEST_CLIPS) if averages else None
    averaged = clips_averaged(np.bincount(windows[0], minlength=len(own))) if averages else {}

    def score() -> dict[str, np.ndarray]:
        from pipelines.trained_models import centre_scores, mean_scores

        if averages:
            return mean_scores(model, clips, own.which, windows, targets, batch, progress)
        return centre_scores(model, clips, own.which, targets, batch, progress)

    return ClipScorer(
        clips=own,
        classes=targets,
        epoch=opened.epoch,
        counts={name: class_counts(labels[name][fitted], n) for name, n in targets.items()},
        prior=prior,
        score=score,
        figures=lambda scores: covered_accuracies(scores, own.labels, prior) | averaged,
    )


def recogniser_scorer(run: Run, split: str, *, stores, place, device, allow_incomplete, progress) -> ClipScorer:
    """A run of train-recogniser: the mean over the middles of a clip's segments."""
    facts = run.facts
    config, ((target, classes),) = RecogniserConfig(**facts["training"]), facts["targets"].items()
    device = pick_device(device)
    tensors, metadata = run.best_checkpoint()
    opened = run.open_stores(stores)
    if "frames" in opened:
        source = clip_source("rgb_frame", dataset=None, frames=opened["frames"])
        store = source.frames.store
        inputs = FrameInputs(source.frames, facts["network"]["options"]["resize"]["crop"], config, facts["seed"])
    else:
        store = opened["vectors"]
        source, inputs = source_of(store), VectorInputs(store)
    model = _trained_recogniser(run, tensors, target, classes, "frames" in opened, device, config.precision)
    targets = dataclasses.replace(targets_of(source, store, target, facts["fit"]), classes=classes)
    rows = ClipRows(store, allow_incomplete)
    own = _evaluated(source, {} if targets.multi else {target: targets.labels[:, 0]}, source.split(split), split)

    def figures(scores: Mapping[str, np.ndarray]) -> dict:
        """As in validation, of the clips that have labels."""
        known = targets.known[own.which]
        if not known.any():
            raise UserError(f"split {split!r} has no clips with {target} labels: no figures")
        return targets.figures(scores[target][known], own.which[known])

    return ClipScorer(
        clips=own,
        classes={target: classes},
        epoch=metadata["epoch"],
        counts={target: class_counts(targets.labels[source.split(facts["fit"])], classes)},
        prior=None,
        score=lambda: {target: segment_scores(model, inputs, rows, own.which, classes, config, progress)},
        figures=figures,
    )


def detector_figures_of(run: Run, split: str, *, stores, place, device, allow_incomplete, allow_seen, progress) -> dict:
    """`evaluate` of a run of train-detector: COCO's figures of the split's frames (as many of them as its own
    validation looked at), and "coverage": the share of its annotated frames that hold an image."""
    from extract.networks.faster_rcnn_training import TrainedDetector

    facts = run.facts
    config = DetectorConfig(**facts["training"])
    need_package("pycocotools", "the figures of a detector")
    device = pick_device(device)
    dataset = load_dataset(place.dataset or facts["dataset"]["name"], data_root=place.data, videos=place.videos)
    if dataset.name != facts["dataset"]["name"]:
        raise UserError(f"{run.path} was trained on boxes of {facts['dataset']['name']}, not of {dataset.name}")
    reader = FrameReader(run.open_stores(stores)["frames"])
    if facts["boxes"]["file"] is not None and place.boxes is None:
        raise UserError(
            f"{run.path} was trained on the boxes of a file: say where it is with --boxes {facts['boxes']['file']}"
        )
    given = boxes_of(dataset, place.boxes, reader)
    if given.digest != facts["boxes"]["digest"]:
        warnings.warn(f"these are not the boxes that {run.path} was trained on", stacklevel=3)
    annotated = join_boxes(given, dataset, reader, config.within).of_split(dataset, split)
    frames = readable_frames(annotated, reader, allow_incomplete or facts["allow_incomplete"], warnings.warn)
    coverage = len(frames) / len(annotated)
    frames = frames.spread(config.val_frames)
    check_lineage(run, FramesOfSplit(frames, dataset), split, allow_seen)
    tensors, metadata = run.best_checkpoint()
    net = validated_network(facts["network"]["name"], facts["network"]["options"])
    net.module.load_state_dict(tensors)
    found = detection_figures(TrainedDetector(net.to(device)), reader, frames)
    return write_figures(run, split, metadata["epoch"], found | {"coverage": coverage})


# --- what is in a run ---


def _trained_recogniser(run: Run, tensors: Mapping, target: str, classes: int, of_frames: bool, device, precision):
    from pipelines.recogniser_model import TrainedRecogniser, own_classifier

    name, options = run.facts["network"]["name"], run.facts["network"]["options"]
    own = trained_beside(tensors, f"classifier.{target}.")
    if own:
        weight, bias = own["weight"], own["bias"]
    else:
        _, shapes = own_classifier(name, options, classes)
        weight, bias = sorted((tensors[key] for key in shapes), key=lambda tensor: -tensor.dim())
    if not of_frames:
        return TrainedRecogniser(weight, bias)
    network = create_network(name, str(run.path), **options).to(device, precision)
    network.keep = ("vector",)
    return TrainedRecogniser(weight, bias, network)


def _evaluated(source: ClipSource, labels: Mapping, which: np.ndarray, split: str) -> EvaluatedClips:
    if not len(which):
        raise UserError(f"{source.where}: no clip is in split {split!r}")
    return EvaluatedClips(source.name, source.clips, labels, which, source.where)
