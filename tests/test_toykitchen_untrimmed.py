"""Toy kitchen's untrimmed videos as a dataset: labels, splits, and that the variants are frozen."""

import numpy as np
import pytest

from errors import UserError
from extract.datasets import load_dataset
from extract.datasets.toykitchen import Dials, make_toykitchen, write_script
from extract.datasets.toykitchen_untrimmed import USUAL, split_of

TINY = {"untrimmed": 16, "untrimmed_seconds": 4, "irrelevant": 0.5}
NAME = "toykitchen_untrimmed:" + ",".join(f"{dial}={value}" for dial, value in TINY.items())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_toykitchen(root, Dials(**USUAL | TINY), jobs=1)
    return root


@pytest.fixture(scope="module")
def dataset(data):
    return load_dataset(NAME, data)


def test_every_untrimmed_video_is_one_clip_and_no_other_video_is_there(dataset):
    script = [video for video in write_script(Dials(**USUAL | TINY)) if video.events]
    assert len(dataset) == 16 and list(dataset.clips["id"]) == [video.name for video in script]
    assert not dataset.clips["start_s"].any() and np.isnan(dataset.clips["stop_s"]).all()
    assert all(dataset.videos["path"]) and dataset.classes == {"label": 10}
    assert dataset.name == NAME.replace(":", "-").replace(",", "-")


def test_the_label_is_what_is_handled_in_the_relevant_scenes(dataset):
    script = {video.name: video for video in write_script(Dials(**USUAL | TINY))}
    for clip, label in zip(dataset.clips["id"], dataset.clips["label"], strict=True):
        told = [scene for scene in script[clip].scenes if scene.verb >= 0]
        assert len(told) == 1 and {scene.things[0].noun for scene in told} == {label}


def test_events_are_the_actions(dataset):
    events = dataset.events
    assert len(events["video"]) == 16 and np.array_equal(np.unique(events["video"]), np.arange(16))
    assert ((events["stop_s"] - events["start_s"] > 1) & (events["stop_s"] <= 4) & (events["label"] < 6)).all()


def test_splits_share_no_kitchen(dataset):
    kitchens = {part: set() for part in ("train", "val", "test")}
    for clip, part in zip(dataset.clips["id"], dataset.clips["split"], strict=True):
        kitchens[part].add(clip[:3])
    assert kitchens["val"] == {"P11"} and kitchens["test"] <= {"P26", "P27", "P28", "P29", "P30", "P31"}
    assert (dataset.clips["split"] == "test").sum() == 4 and not kitchens["train"] & kitchens["val"]


def test_the_usual_variant_has_videos_enough():
    parts = [split_of(video.name) for video in write_script(Dials(**USUAL)) if video.events]
    assert (parts.count("train"), parts.count("val"), parts.count("test")) == (267, 33, 100)


@pytest.mark.parametrize(
    "dials, frozen",
    [
        ({}, "762fcd9600cd70e589449549ff40cc45762913d480ae98b8dafa4ca127d3fccf"),
        ({"irrelevant": 0.0}, "8bb19450320bdfad0146610b056648e6b79d9db432949b77fef1c5bdacb4e629"),
        ({"irrelevant": 0.875}, "41f3fa13794b05626765816fe29f3009c15415ca0b952ac49022eb945fd18a2f"),
    ],
)
def test_variants_that_claims_are_made_on_are_frozen(dials, frozen):
    """Dials and generator's version; docs/ablations.md names the same hashes."""
    assert Dials(**USUAL | dials).hash == frozen


def test_toy_kitchen_itself_is_as_it_was():
    assert Dials().hash == "c81481b2e757a46c9fa0e344c1c5fc6de59c0f1d3b699334a674f148d3f50b91"


def test_what_cannot_be_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("CLIPBANK_DATA", raising=False)
    with pytest.raises(UserError, match="untrimmed is 0"):
        load_dataset("toykitchen_untrimmed:untrimmed=0", tmp_path)
    with pytest.raises(UserError, match="data root"):
        load_dataset("toykitchen_untrimmed")
    with pytest.raises(UserError, match="flow"):
        load_dataset("toykitchen_untrimmed", tmp_path, media="flow")
