"""Growth, added arrays and repair through the real extraction, with a tiny network."""

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import media
import numpy as np
import pytest

from errors import MachineError, UserError
from extract.networks import create_network
from pipelines import extract, plan_extraction
from pipelines.estimate import describe_job
from pipelines.repair import repair
from pipelines.run_folder import save_tensors
from stores import RowNotReady, limits, open_store, verify
from stores.zarr_store import ZarrFiles
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
    assert any("extending by 2 rows, 1 video is new" in line for line in said)
    store = open_store(report.store)
    assert store.manifest.extents == ((0, 3), (4, 2)) and verify(store.path) == []
    (whole,) = extract(ask(folder, tmp_path / "whole", draws=0))
    after = values_by_name(store)
    expected = values_by_name(open_store(whole.store))
    assert set(after) == set(expected) and all(np.array_equal(after[name], value) for name, value in before.items())
    assert all(np.allclose(after[name], expected[name], atol=2e-3) for name in expected)
    (again,) = extract(ask(folder, tmp_path / "f", draws=0))
    assert again.complete and "nothing to do" in again.summary()


def test_clips_that_the_annotations_have_no_more_stay_and_are_named(kitchen, tmp_path):
    folder = copy_of(kitchen, tmp_path / "k")
    write_csv(folder / "small.csv", [f"{clip},one,{clip[1:]}.0,1.5" for clip in ("c0", "c1")], "id,video,start,stop")
    (first,) = extract(ask(folder, tmp_path / "f", draws=0))
    assert first.clips_gone == []
    before = values_by_name(open_store(first.store))
    write_csv(folder / "small.csv", ["c1,one,1.0,1.5", "c2,two,0.0,1.0"], "id,video,start,stop")
    request = ask(folder, tmp_path / "f", draws=0)
    facts = describe_job(plan_extraction(request)[0], None)
    assert (facts["clips_gone"], facts["clips_gone_such_as"], facts["rows_to_add"]) == (1, ["c0"], 1)
    (report,) = extract(request)
    assert report.clips_gone == ["c0"] and report.complete and report.computed == 1
    assert "1 clip of the store is not in the annotations any more; they stay, with their rows: c0" in report.summary()
    store = open_store(report.store)
    assert len(store.ok) == 3 and verify(store.path) == []
    assert all(np.array_equal(values_by_name(store)[name], value) for name, value in before.items())


def test_more_units_than_a_store_may_have_are_refused_by_the_plan(kitchen, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MOST_UNITS", 2)
    for ask_for in (plan_extraction, extract):
        with pytest.raises(UserError, match=r"tiny3d.zarr: 3 rows in units of 1 .* 2 units .*--unit-rows 2 or more"):
            ask_for(ask(kitchen, tmp_path / "f", draws=0, unit_rows=1))
    assert not (tmp_path / "f").exists()
    (report,) = extract(ask(kitchen, tmp_path / "f", draws=0, unit_rows=2))
    assert report.complete
    plan_extraction(ask(kitchen, tmp_path / "f", draws=0, unit_rows=1))  # the store is there, and is cut already


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
    with pytest.raises(UserError, match=r"weights of the network, .* that made .*random:9 are others"):
        repair(path, weights="random:9", **where)
    assert repair(path, **where).sealed == 1 and same_tree(path, whole) == []


def test_repair_finds_the_weights_of_a_run_among_the_runs(kitchen, tmp_path, monkeypatch):
    request = ask(kitchen, tmp_path / "f", draws=0)
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    save_tensors(run / "best.safetensors", create_network(request.backbone, "random:3").module.state_dict(), {})
    (report,) = extract(replace(request, weights=(str(run),)))
    path = Path(report.store)
    whole = shutil.copytree(path, tmp_path / "kept.zarr")
    where = {"dataset": str(kitchen / "small.csv"), "videos": kitchen / "videos"}
    (path / "data/vector/c.0.0").unlink()
    monkeypatch.chdir(kitchen)
    with pytest.raises(UserError, match=r"\(run:mine\), .* not found: say where they are, --weights RUN"):
        repair(path, **where)
    monkeypatch.chdir(tmp_path)
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


def lookers(path: Path):
    """A reader from before, and what each reader says of every row: it has the value, or there is an error."""
    before = open_store(path)
    values = {row: before.read("vector", [row])[0].tolist() for row in before.ok.tolist()}

    def look() -> None:
        for reader in (before, open_store(path)):
            for row, value in values.items():
                try:
                    assert reader.read("vector", [row])[0].tolist() == value, "never a fill value"
                except (MachineError, RowNotReady):
                    continue

    return look


@pytest.mark.parametrize("again", ["repair", "extract"])
@pytest.mark.parametrize("stopped_by", ["no dataset", "no space", "no probe"])
def test_a_repair_that_fails_midway_says_so_and_is_gone_on_with(kitchen, tmp_path, monkeypatch, stopped_by, again):
    folder = copy_of(kitchen, tmp_path / "k")
    (first,) = extract(ask(folder, tmp_path / "f", draws=0))
    path = Path(first.store)
    whole = shutil.copytree(path, tmp_path / "whole.zarr")
    where = {"dataset": str(folder / "small.csv"), "videos": folder / "videos"}
    look, put = lookers(path), ZarrFiles.put
    if stopped_by == "no probe":  # of a video whose rows are whole
        (path / "probes/one.json").write_bytes(b"")
        (path / "sealed/1/videos/fps/c.0").unlink()
    else:
        (path / "data/vector/c.0.0").write_bytes((path / "data/vector/c.0.0").read_bytes()[:-9])
    look()

    def fails(self, name, data, generation):
        look()
        if name.startswith("data/"):
            raise MachineError("no space left to write")
        return put(self, name, data, generation)

    if stopped_by == "no space":
        monkeypatch.setattr(ZarrFiles, "put", fails)
    message = "no space left to write" if stopped_by == "no space" else "is of a CSV of your own"
    with pytest.raises((UserError, MachineError), match=rf"(?s){message}.*was sealed and is not now.*repair again, or"):
        repair(path, **(where if stopped_by == "no space" else {}))
    monkeypatch.undo()
    look()
    assert not open_store(path).sealed
    report = repair(path, **where) if again == "repair" else extract(ask(folder, tmp_path / "f", draws=0))[0]
    assert report.pending == 0 and report.sealed == 1 + (stopped_by == "no probe")  # whose seal was damaged, too
    look()
    assert verify(path) == [] and open_store(path).probe("one") == open_store(whole).probe("one")
    assert [name for name in same_tree(path, whole) if not name.startswith("sealed/") and name != "zarr.json"] == []
    assert stopped_by == "no probe" or same_tree(path, whole) == []


def test_a_repair_that_is_stopped_says_that_the_store_is_not_sealed(kitchen, tmp_path):
    folder = copy_of(kitchen, tmp_path / "k")
    (first,) = extract(ask(folder, tmp_path / "f", draws=0))
    (Path(first.store) / "data/vector/c.0.0").unlink()
    where = {"dataset": str(folder / "small.csv"), "videos": folder / "videos"}
    stop = threading.Event()
    stop.set()
    report = repair(first.store, stop=stop, **where)
    assert report.lost_its_seal and report.pending == 2 and report.sealed is None
    assert "was sealed and is not now" in report.summary()
    report = repair(first.store, **where)
    assert report.sealed == 1 and not report.lost_its_seal and "is not now" not in report.summary()


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
