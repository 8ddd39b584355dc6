"""Runs of train-backbone, opened again: the network with what was trained on its maps, and the clips that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from errors import UserError
from extract.networks import create_network, network_spec
from extract.sampling import ClipSampling
from extract.transforms import Resize
from extract.weights import trained_beside
from pipelines.base_training import BackboneConfig, object_reader
from pipelines.devices import pick_device
from pipelines.evaluation import Place
from pipelines.labelled_clips import (
    ClipInput,
    ClipSource,
    LabelledClips,
    check_frames,
    clip_source,
    input_options,
    labels_of,
)
from pipelines.run_folder import Run

if TYPE_CHECKING:
    from pipelines.trained_models import TrainedNetwork

__all__ = ["OpenedBackbone", "open_backbone"]


@dataclass(frozen=True)
class OpenedBackbone:
    """The best model of a base training and all clips of its dataset."""

    model: TrainedNetwork  # on its device, for evaluation
    source: ClipSource
    clips: LabelledClips  # with the objects that the head looks at, if it does
    config: BackboneConfig
    epoch: int  # of the checkpoint


def open_backbone(
    run: Run,
    *,
    stores: Mapping[str, object] | None = None,
    place: Place = Place(),  # noqa: B008  frozen
    device: str | None = None,
) -> OpenedBackbone:
    """Open a run of train-backbone, with linear classifiers or with a head.

    stores: {role: store or path} of those that have moved since; "frames" also of a run that decoded its videos.
    place: where the dataset is, of such a run. device: as for `pipelines.evaluate`.

    Raises UserError: a training that never finished an epoch, stores of another recipe, a dataset that is not there,
    frames of another dataset or size.
    """
    facts = run.facts
    config, of_network = BackboneConfig(**facts["training"]), facts["network"]
    device = pick_device(device)
    tensors, metadata = run.best_checkpoint()
    spec = network_spec(of_network["name"], **of_network["options"])
    given = ClipInput(spec, ClipSampling(**of_network["sampling"]), Resize(**of_network["resize"]))
    opened, source = _clips_and_frames(run, spec.reads, stores, place)
    check_frames(source, given)
    labels, _ = labels_of(source, facts["targets"], facts["fit"])
    clips = LabelledClips(source.clips, labels, source.frames, given, facts["seed"])
    options = input_options(of_network["options"], given)
    network = create_network(of_network["name"], str(run.path), **options).to(device, config.precision)
    model = _trained_model(run, network, tensors)
    if "objects" in opened:
        clips.objects = object_reader(opened["objects"], model.head.reads["objects"], model.head.config, source)
    return OpenedBackbone(model.eval(), source, clips, config, metadata["epoch"])


def _clips_and_frames(run: Run, reads: str, stores, place: Place) -> tuple[dict, ClipSource]:
    """(the run's other stores by role, its clips with their frames)."""
    opened = run.open_stores(stores)
    name = run.facts["dataset"]["name"]
    source = clip_source(
        reads,
        dataset=place.dataset or name,
        frames=opened.get("frames", "decode"),
        data=place.data,
        videos=place.videos,
    )
    if source.name != name:
        raise UserError(f"{run.path} was trained on {name}; {source.where} is of {source.name}")
    return opened, source


def _trained_model(run: Run, network, tensors: Mapping) -> TrainedNetwork:
    """The network with what was trained beside it, as the checkpoint has both."""
    from pipelines.trained_models import ClassifiedBackbone, JointModel

    if "head" in run.facts:
        head = run.create_head()
        head.load_state_dict(trained_beside(tensors, "head."))
        return JointModel(network, head, freeze_norms=True)
    model = ClassifiedBackbone(network, run.facts["targets"], dropout=0.0, freeze_norms=True)
    model.classifier.load_state_dict(trained_beside(tensors, "classifier."))
    return model
