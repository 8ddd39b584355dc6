"""Growth, added arrays and repair through the real extraction, with a tiny network."""

import os
import shutil
import time
from pathlib import Path

import media
import numpy as np
import pytest

from errors import UserError
from pipelines import extract
from pipelines.repair import repair
from stores import open_store, verify
from tests.store_samples import same_tree
from tests.test_extraction import ask, write_csv


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "videos").mkdir()
    for name, n in [("one", 40), ("two", 30), ("three", 50)]:
        media.make_video(folder / "videos" / f"{name}.mp4", "libx264", n, options=media.x264(keyint=20))
    for path in (folder / "videos").iterdir():
        os.utime(path, (time.time() - 60,) * 2)
    write_csv(folder / "small.csv", ["one,0.0,1.0", "two,0.2,1.0", "three,0.0,1.5"])
    return folder


def copy_of(kitchen: Path, folder: Path) -> Path:
    shutil.copytree(kitchen, folder)
    return folder


def values_by_name(store, array="vector") -> dict:
    names = [
        (store.videos["name"][store.rows["video"][i]], round(float(store.rows["start_s"][i]), 3)) for i in store.ok
    ]
    return dict(zip(names, store.read(array, store.ok), strict=True))


def test_more_clips_and_videos_extend_the_store_and_equal_one_made_at_once(kitchen, tmp_path):
    folder = copy_of(kitchen, tmp_path / "k")
    (first,) = extract(ask(folder, tmp_path / "f", draws=0))
    before = values_by_name(open_store(first.store))
    rows = (folder / "small.csv").read_text().splitlines()[1:]
    write_csv(folder / "small.csv", [*rows, "one,0.3,0.9", "four,0.0,1.0"])
    media.make_video(folder / "videos" / "four.mp4", "libx264", 40)
    os.utime(folder / "videos" / "four.mp4", (time.time() - 60,) * 2)
    said = []
    (report,) = extract(ask(folder, tmp_path / "f", draws=0), announce=said.append)
    assert report.complete and report.computed == 2 and report.done_before == 3 and report.sealed == 2
    assert any("extending by 2 rows, 1 videos are new" in line for line in said)
    store = open_store(report.store)
    assert store.manifest.extents == ((0, 3), (4, 2)) and verify(store.path) == []
    (whole,) = extract(ask(folder, tmp_path / "whole", draws=0))
    after = values_by_name(store)
    expected = values_by_name(open_store(whole.store))
    assert set(after) == set(expected) and all(np.array_equal(after[name], value) for name, value in before.items())
    assert all(np.allclose(after[name], expected[name], atol=2e-3) for name in expected)
    (again,) = extract(ask(folder, tmp_path / "f", draws=0))
    assert again.complete and "nothing to do" in again.summary()


def test_a_moved_annotation_stays_refused(tmp_path, kitchen):
    folder = copy_of(kitchen, tmp_path / "k")
    header = "id,video,start,stop"
    write_csv(folder / "small.csv", ["a,one,0.0,1.0"], header)
    extract(ask(folder, tmp_path / "f", draws=0))
    write_csv(folder / "small.csv", ["a,one,0.6,1.6", "b,one,0,1"], header)
    store = tmp_path / "f" / "small" / "tiny3d.zarr"
    with pytest.raises(UserError, match="moved under the same clip id.*'a'"):
        extract(ask(folder, tmp_path / "f", draws=0))
    assert len(open_store(store)) == 1


def test_an_array_that_the_store_lacks_is_added(kitchen, tmp_path):
    (first,) = extract(ask(kitchen, tmp_path / "f", keep=("vector",)))
    before = values_by_name(open_store(first.store))
    (part,) = extract(ask(kitchen, tmp_path / "f", keep=("vector", "spatial"), limit=2))
    assert part.lacking_arrays == 4 and part.computed == 2 and "wait for the arrays" in part.summary()
    assert list(open_store(first.store).manifest.arrays) == ["vector", "n_padded"] and open_store(first.store).sealed
    (report,) = extract(ask(kitchen, tmp_path / "f", keep=("vector", "spatial")))
    assert report.complete and report.computed == 4 and report.sealed == 2 and not report.lacking_arrays
    store = open_store(first.store)
    (whole,) = extract(ask(kitchen, tmp_path / "whole", keep=("vector", "spatial")))
    other = open_store(whole.store)
    assert all(np.array_equal(values_by_name(store)[name], value) for name, value in before.items())
    assert np.array_equal(store.read("spatial", store.ok), other.read("spatial", other.ok))
    assert verify(store.path) == [] and not list((tmp_path / "f/small/.adding").glob("*.zarr"))
    assert list((store.path / "provenance").glob("*+spatial.json")), "who computed the array is kept"


def test_repair_computes_exactly_what_is_lost_and_gives_the_same_bytes(kitchen, tmp_path):
    (report,) = extract(ask(kitchen, tmp_path / "f"))
    path = Path(report.store)
    whole = shutil.copytree(path, tmp_path / "kept.zarr")
    where = {"dataset": str(kitchen / "small.csv"), "videos": kitchen / "videos"}
    assert "nothing to repair" in repair(path, **where).summary()
    (path / "data/spatial/c.1.0.0.0").unlink()
    (path / "clips/id/c.0").write_bytes(b"x")
    (path / "probes/two.json").unlink()
    with pytest.raises(UserError, match="a CSV of your own: say where it is"):
        repair(path)
    done = repair(path, **where)
    assert done.computed == 2 and done.sealed == 1 and same_tree(path, whole) == []
    moved = shutil.copytree(path, tmp_path / "elsewhere" / "x.zarr")
    (moved / "rows/status/c.0").unlink()
    (moved / "data/vector/c.2.0").write_bytes(b"")
    assert repair(moved, **where).sealed == 1 and same_tree(moved, whole) == []
    (path / "data/vector/c.0.0").unlink()
    with pytest.raises(UserError, match=r"(?s)cannot be repaired.*weights"):
        repair(path, weights="random:9", **where)
    assert repair(path, **where).sealed == 1 and same_tree(path, whole) == []


def test_failed_rows_are_repaired_when_their_video_is_mended(kitchen, tmp_path):
    folder = copy_of(kitchen, tmp_path / "k")
    whole = (folder / "videos" / "two.mp4").read_bytes()
    (folder / "videos" / "two.mp4").write_text("no video\n" * 99)
    os.utime(folder / "videos" / "two.mp4", (time.time() - 60,) * 2)
    (report,) = extract(ask(folder, tmp_path / "f", draws=0))
    where = {"dataset": str(folder / "small.csv"), "videos": folder / "videos"}
    done = repair(report.store, **where)
    assert done.failed == {"not_video": 1} and not done.computed and open_store(report.store).manifest.seal["k"] == 1
    (folder / "videos" / "two.mp4").write_bytes(whole)
    done = repair(report.store, **where)
    assert done.failed == {} and done.computed == 1 and done.sealed == 2 and verify(report.store) == []


@pytest.mark.parametrize("axis", ["clip", "frame"])
def test_changed_videos_are_computed_anew_when_asked(kitchen, tmp_path, axis):
    folder = copy_of(kitchen, tmp_path / "k")
    options = {"draws": 0} if axis == "clip" else {"backbone": "efficientnet_lite0", "weights": (), "draws": None}
    (report,) = extract(ask(folder, tmp_path / "f", **options))
    before = values_by_name(open_store(report.store))
    media.make_video(folder / "videos" / "one.mp4", "libx264", 100)
    os.utime(folder / "videos" / "one.mp4", (time.time() - 60,) * 2)
    (listed,) = extract(ask(folder, tmp_path / "f", **options))
    assert listed.changed_videos == ["one"] and not listed.complete and "repair --changed" in listed.summary()
    where = {"dataset": str(folder / "small.csv"), "videos": folder / "videos"}
    left = repair(report.store, **where)
    assert not left.computed and open_store(report.store).manifest.seal["k"] == 1
    done = repair(report.store, changed=True, **where)
    store = open_store(report.store)
    after = values_by_name(store)
    assert done.changed_videos == ["one"] and done.sealed == 2 and done.pending == 0 and verify(store.path) == []
    assert (len(after) > len(before)) == (axis == "frame")
    same = {name: np.array_equal(after[name], value) for name, value in before.items()}
    assert all(same[name] for name in same if name[0] != "one") and store.probe("one")["n_frames"] == 100
    assert axis == "frame" or not all(same.values())
    (again,) = extract(ask(folder, tmp_path / "f", **options))
    assert again.complete and not again.computed
