"""`store audit`: rows that compute to something else are found, and rows that look wrong are named."""

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import media
import numpy as np
import pytest

from errors import UserError
from extract.networks import create_network
from pipelines import Extraction, extract
from pipelines.audit import audit, odd_input, scan
from pipelines.inspection import inspect_clip
from pipelines.run_folder import save_tensors
from stores import OK, ArraySpec, DamagedStore, open_store
from stores.zarr_store import encode_shard
from tests.store_samples import new_store

pytestmark = pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning")


def write_frames(path: Path, frames: list[np.ndarray]) -> None:
    """A video of these uint8 (96, 128, 3) frames at 25 a second."""
    with av.open(str(path), "w") as out:
        stream = media.add_stream(out, "libx264", 25, (128, 96), media.x264(keyint=20))
        stream.codec_context.time_base = Fraction(1, 25)
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """(folder of the CSV and its videos, the store of it): one video moves, one is black, one stands still."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "videos").mkdir()
    write_frames(folder / "videos" / "moves.mp4", [media.picture(k) for k in range(60)])
    write_frames(folder / "videos" / "black.mp4", [np.zeros((96, 128, 3), np.uint8)] * 40)
    write_frames(folder / "videos" / "still.mp4", [media.picture(7)] * 40)
    lines = [f"moves,{i / 10:.1f},{i / 10 + 1:.1f}" for i in range(8)] + ["black,0.2,1.2", "still,0.2,1.2"]
    (folder / "small.csv").write_text("\n".join(["video,start,stop", *lines]) + "\n")
    request = Extraction(
        dataset=str(folder / "small.csv"),
        videos=folder / "videos",
        features=(folder / "features",),
        backbone="tiny3d",
        weights=("random:0",),
        draws=0,
        unit_rows=4,
    )
    (report,) = extract(request)
    assert report.complete
    return folder, Path(report.store)


@pytest.fixture
def copied(made, tmp_path) -> tuple[dict, Path]:
    """(where the videos are, a copy of the store that a test may change)."""
    folder, store = made
    path = Path(shutil.copytree(store, tmp_path / "tiny3d.zarr"))
    return {"dataset": str(folder / "small.csv"), "videos": folder / "videos"}, path


def replace_rows(path: Path, unit: int, name: str, change) -> None:
    """What a bug in the network, or another hand, would leave: whole, with right checksums, and wrong."""
    store = open_store(path)
    files, unit = store._files, store.units[unit]
    values = np.full((store.manifest.layout.unit_rows, *store.manifest.arrays[name].row_shape), np.nan, np.float16)
    values[: len(unit)] = change(store.read(name, np.arange(unit.start, unit.stop)).copy())
    held = np.zeros(len(values), bool)
    held[: len(unit)] = True
    (path / files.shard_name(name, unit.index)).write_bytes(encode_shard(files.metadata(f"data/{name}"), values, held))


def of_kind(report: dict, kind: str) -> list[dict]:
    return [one for one in report["suspects"] if one["kind"] == kind]


# ---- computed again ----------------------------------------------------------------------------------------------


def test_a_store_as_it_was_computed_passes_and_odd_videos_are_named(copied):
    where, path = copied
    done = []
    report = audit(path, sample=50, progress=lambda at, total: done.append((at, total)), **where)
    assert json.loads(json.dumps(report)) and not report["differs"] and report["origin"] is None
    assert report["rows"] == report["scanned"] == report["compared"] == 10 and report["unreadable"] == 0
    assert report["largest_difference"] < 5e-3 and done[-1] == (10, 10)
    assert {one["video"] for one in of_kind(report, "black")} == {"black"}
    assert {one["video"] for one in of_kind(report, "frozen")} == {"black", "still"}
    assert not of_kind(report, "differs") and not of_kind(report, "duplicate")


def test_a_changed_value_is_found_and_the_row_can_be_looked_at(copied, tmp_path):
    where, path = copied

    def change(values):
        values[1] += np.float16(0.25)
        return values

    store = open_store(path)
    store.unseal()
    replace_rows(path, 1, "vector", change)
    report = audit(path, **where)
    (found,) = of_kind(report, "differs")
    assert report["differs"] and found["row"] == 5 and found["video"] == "moves" and "vector" in found["what"]
    assert list(found["time_s"]) == [store.rows["start_s"][5], store.rows["stop_s"][5]]
    clip = found["look"].split()[-1]
    facts = inspect_clip(path, clip, recompute=True, out=tmp_path / "sheet.png", **where)
    assert facts["row"] == 5 and facts["differs"]


def test_the_sample_is_drawn_by_its_seed(copied):
    where, path = copied
    one, again = (audit(path, sample=3, seed=1, **where) for _ in range(2))
    assert one == again and one["compared"] == 3
    assert audit(path, sample=0, **where)["compared"] == 0


def test_a_video_that_is_gone_or_changed_is_said_and_is_no_difference(copied, tmp_path):
    where, path = copied
    folder = Path(shutil.copytree(where["videos"], tmp_path / "videos"))
    (folder / "still.mp4").unlink()
    media.make_video(folder / "black.mp4", "libx264", 50)
    os.utime(folder / "black.mp4", (1e9, 1e9))
    report = audit(path, dataset=where["dataset"], videos=folder)
    assert report["compared"] == 8 and report["unreadable"] == 2 and not report["differs"]
    assert {one["video"] for one in of_kind(report, "unreadable")} == {"still", "black"}
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="none of 10 rows can be computed again"):
        audit(path, dataset=where["dataset"], videos=folder)


def test_other_weights_and_missing_datasets_are_refused(copied):
    where, path = copied
    with pytest.raises(UserError, match=r"weights of the network, tiny3d \(random:0\).*\(random:1 are others\)"):
        audit(path, weights="random:1", **where)
    with pytest.raises(UserError, match="--dataset small.csv"):
        audit(path)


def test_weights_of_a_run_are_found_among_the_runs_or_asked_for(made, tmp_path, monkeypatch):
    folder, _ = made
    where = {"dataset": str(folder / "small.csv"), "videos": folder / "videos"}
    run = tmp_path / "work" / "runs" / "mine"
    run.mkdir(parents=True)
    save_tensors(run / "best.safetensors", create_network("tiny3d", "random:3").module.state_dict(), {})
    request = Extraction(**where, features=(tmp_path,), backbone="tiny3d", weights=(str(run),), draws=0)
    (report,) = extract(request)
    clip = str(open_store(report.store).clips["id"][0])
    monkeypatch.chdir(tmp_path / "work")
    assert not audit(report.store, sample=3, **where)["differs"]
    facts = inspect_clip(report.store, clip, recompute=True, out=tmp_path / "sheet.png", **where)
    assert not facts["differs"]
    monkeypatch.chdir(tmp_path)
    asked = r"weights of the network, tiny3d \(run:mine\), .* not found: say where they are, --weights RUN"
    with pytest.raises(UserError, match=asked):
        audit(report.store, sample=3, **where)
    assert not audit(report.store, sample=3, weights=str(run), **where)["differs"]


def test_damage_is_an_error_of_its_own(copied):
    where, path = copied
    shard = path / "data" / "vector" / "c.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DamagedStore):
        audit(path, **where)


# ---- looked at ---------------------------------------------------------------------------------------------------


def test_constant_duplicate_and_extreme_rows(tmp_path):
    n = 40
    store = new_store(tmp_path / "s.zarr", n, unit_rows=8, arrays={"vector": ArraySpec((16,), "float16")})
    values = np.random.default_rng(0).normal(0, 1, (n, 16)).astype(np.float32)
    values[3], values[4] = 0, 7
    values[20] = values[9]
    values[30] *= 100
    values[31] /= 100
    for unit in store.units:
        store.commit(unit, {"vector": values[unit.start : unit.stop]}, np.full(len(unit), OK, np.uint8))
    found, scanned = scan(store, store.ok, 1 << 30)
    assert scanned == n
    assert {(one.kind, one.row) for one in found} == {
        ("constant", 3),
        ("constant", 4),
        ("duplicate", 20),
        ("extreme_norm", 30),
        ("extreme_norm", 31),
    }
    duplicate = next(one for one in found if one.kind == "duplicate")
    assert "row 9" in duplicate.what and "'clip 20 é'" in duplicate.look and duplicate.video == "a/b ü"


def test_rows_without_boxes_are_no_suspects(tmp_path):
    arrays = {"roi": ArraySpec((2, 4), "float32"), "n_boxes": ArraySpec((), "int16")}
    store = new_store(tmp_path / "s.zarr", 4, unit_rows=4, arrays=arrays)
    roi = np.random.default_rng(0).normal(size=(4, 2, 4)).astype(np.float32)
    roi[1:3] = 0
    store.commit(0, {"roi": roi, "n_boxes": np.array([2, 0, 0, 1], np.int16)}, np.full(4, OK, np.uint8))
    assert scan(store, store.ok, 1 << 30) == ([], 4)


def test_of_a_large_store_evenly_spaced_pieces_are_looked_at(tmp_path):
    n = 1024
    store = new_store(tmp_path / "s.zarr", n, unit_rows=512, arrays={"vector": ArraySpec((4,), "float32")})
    values = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    values[0], values[-1], values[300] = 1, 1, 1
    for unit in store.units:
        store.commit(unit, {"vector": values[unit.start : unit.stop]}, np.full(len(unit), OK, np.uint8))
    found, scanned = scan(store, store.ok, 2 * 256 * 16)
    assert scanned == 512 and {one.row for one in found if one.kind == "constant"} == {0, n - 1}


def test_a_store_without_a_row_or_a_recipe(tmp_path):
    store = new_store(tmp_path / "s.zarr", 4, arrays={"vector": ArraySpec((4,), "float32")})
    with pytest.raises(UserError, match="nothing to audit"):
        audit(store.path)
    imported = new_store(
        tmp_path / "i.zarr", 4, arrays={"vector": ArraySpec((4,), "float32")}, recipe={"imported": {"from": "x"}}
    )
    values = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    imported.commit(0, {"vector": values}, np.full(4, OK, np.uint8))
    report = audit(imported.path)
    assert report["compared"] == 0 and report["scanned"] == 4 and "unverified" in report["origin"]
    assert not report["differs"]


# ---- what the network saw ----------------------------------------------------------------------------------------


def seen(value, reads: str = "rgb_clip", indices=None):
    from pipelines.inspection import Seen
    from pipelines.reading import Reading, ReadRow

    reading = Reading(reads, None, None, None)
    indices = np.arange(len(value)) if indices is None else np.array(indices)
    return Seen(ReadRow(0, value, indices=indices), reading, np.empty(0), 0, 0, False)


def test_a_frame_that_a_slow_video_shows_twice_is_not_frozen():
    frames = np.repeat(np.stack([media.picture(k) for k in range(4)]), 2, axis=0)
    assert odd_input(seen(frames, indices=[0, 0, 1, 1, 2, 2, 3, 3])) == []
    assert [kind for kind, _ in odd_input(seen(np.repeat(frames[:1], 8, axis=0)))] == ["frozen"]


def test_silence_and_black_frames():
    assert [kind for kind, _ in odd_input(seen(np.zeros(100, np.float32), "waveform"))] == ["silent"]
    assert odd_input(seen(np.full(100, 0.1, np.float32), "waveform")) == []
    black = np.zeros((8, 6, 3), np.uint8)
    assert [kind for kind, _ in odd_input(seen(black, "rgb_frame", [0]))] == ["black"]
    black[0, 0] = 200
    assert odd_input(seen(black, "rgb_frame", [0])) == []
