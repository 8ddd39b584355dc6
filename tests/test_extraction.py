"""Stage one through its public interface: what is stored, what happens again, and what goes wrong."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import media
import numpy as np
import pytest

from errors import UserError
from extract.networks import create_network
from pipelines import Extraction, extract
from stores import open_store, verify

ROOT = Path(__file__).resolve().parents[1]
REAL = {  # video: start, stop of a clip that lies inside it
    "ego4d_3c0dffd0_012_014": (0.2, 1.8),
    "activitynet_v_GGSY1Qvo990": (5.8, 16.2),
    "activitynet_v_ZNVhz7ctTq0": (4.0, 9.0),
    "kinetics_flipping_a_pancake": (3.0, 8.0),
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Three small videos, and a CSV with clips of each: 10 rows with the default draws of tiny clips."""
    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "videos").mkdir()
    for name, n in [("one", 72), ("two", 60), ("three", 90)]:
        media.make_video(folder / "videos" / f"{name}.mp4", "libx264", n, options=media.x264(keyint=20))
    write_csv(folder / "small.csv", ["one,0.0,1.0", "one,0.5,2.0", "two,0.2,2.0", "two,1.0,1.5", "three,0.0,3.5"])
    return folder


def write_csv(path: Path, rows: list[str], header="video,start,stop") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def ask(folder: Path, features: Path, **options) -> Extraction:
    settings = {
        "dataset": str(folder / "small.csv"),
        "videos": folder / "videos",
        "features": (features,),
        "backbone": "tiny3d",
        "weights": ("random:0",),
        "draws": 1,
        "unit_rows": 2,
        **options,
    }
    return Extraction(**settings)


def run_cli(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        cwd=ROOT,
    )


def cli_arguments(folder: Path, features: Path, *more) -> list[str]:
    return [
        "extract",
        "--dataset",
        folder / "small.csv",
        "--videos",
        folder / "videos",
        "--features",
        features,
        "--backbone",
        "tiny3d",
        "--weights",
        "random:0",
        "--draws",
        "1",
        "--unit-rows",
        "2",
        *more,
    ]


def contents(store: Path) -> dict[str, bytes]:
    """Every object of a store but its provenance (DESIGN: byte-identical)."""
    return {
        str(p.relative_to(store)): p.read_bytes()
        for p in sorted(store.rglob("*"))
        if p.is_file() and "provenance" not in p.relative_to(store).parts
    }


# ---- what is stored ----------------------------------------------------------------------------------------------


def test_real_videos_equal_the_network_on_frames_decoded_independently(shared, tmp_path):
    rows = [f"{name},{start},{stop}" for name, (start, stop) in REAL.items()]
    csv = write_csv(tmp_path / "real.csv", rows)
    (report,) = extract(
        Extraction(
            dataset=str(csv),
            videos=shared / "videos",
            features=(tmp_path / "f",),
            backbone="i3d",
            weights=("random:0",),
            draws=0,
        )
    )
    assert report.complete and report.sealed == 1
    store = open_store(report.store)
    spatial, vector = store.read("spatial", store.ok), store.read("vector", store.ok)
    assert spatial.shape == (4, 7, 7, 1024) and spatial.dtype == np.float16
    assert (spatial.reshape(4, -1).astype(np.float32).std(axis=1) > 0.1).all()
    for i in range(4):
        for j in range(i):
            assert np.abs(vector[i].astype(np.float32) - vector[j].astype(np.float32)).max() > 0.05
    network = create_network("i3d_rgb", weights="random:0")
    network.keep = ("spatial", "vector")
    for row in range(2):
        name = store.videos["name"][store.rows["video"][row]]
        frames = independent_clip(next((shared / "videos").glob(f"{name}.*")), store.rows["start_s"][row])
        outputs = network.run({"frames": [frames]})
        for array, stored in (("spatial", spatial[row]), ("vector", vector[row])):
            expected = outputs[array][0]
            assert np.abs(stored - expected).max() <= 2e-3 * np.abs(expected).max(), (name, array)


def independent_clip(path: Path, start_s: float) -> np.ndarray:
    """64 frames at 25 a second from start_s on: decoded from the first frame, short side 256, centre crop 224."""
    import av

    with av.open(str(path)) as container:
        base = float(container.streams.best("video").time_base)
    frames = [(pts * base, frame) for pts, frame in media.plain_decode(path)]
    times = np.array([t for t, _ in frames]) - frames[0][0]
    clip = []
    for k in range(64):
        t = (round(start_s * 25) + k) / 25
        frame = frames[max(0, np.searchsorted(times, t + 5e-4, side="right") - 1)][1]
        scale = 256 / min(frame.width, frame.height)
        width, height = int(frame.width * scale + 0.5), int(frame.height * scale + 0.5)
        image = media.rgb(frame, width, height)
        top, left = (height - 224) // 2, (width - 224) // 2
        clip.append(image[top : top + 224, left : left + 224])
    return np.stack(clip)


def test_rows_windows_and_padding(kitchen, tmp_path):
    (report,) = extract(ask(kitchen, tmp_path))
    store = open_store(report.store)
    assert report.computed == report.rows == len(store) == 10  # five centre clips and a random draw of each
    assert set(store.rows["draw"]) == {0, 1}
    window = store.rows["stop_s"] - store.rows["start_s"]
    assert np.allclose(window, 16 / 25)
    padded = store.read("n_padded", np.arange(10))
    ends = np.array([store.probe(v)["duration_s"] for v in store.videos["name"]])[store.rows["video"]]
    outside = (store.rows["start_s"] < 0) | (store.rows["stop_s"] > ends + 1e-6)
    assert ((padded > 0) == outside).all()


def test_batches_and_workers_do_not_change_the_features(kitchen, tmp_path):
    one = extract(ask(kitchen, tmp_path / "a"))[0]
    other = extract(ask(kitchen, tmp_path / "b", unit_rows=5), decode_workers=3)[0]
    a, b = open_store(one.store), open_store(other.store)
    assert np.allclose(a.read("spatial", a.ok), b.read("spatial", b.ok), atol=2e-3)


def test_given_boxes_become_roi_features(kitchen, tmp_path):
    boxes = write_csv(
        tmp_path / "boxes.csv",
        ["one,0.0,0.5,0.5,1,1,0.25", "one,0.0,0.1,0.1,0.5,0.5,0.75", "two,1.0,0,0,1,1,1"],
        header="video,time,x1,y1,x2,y2,score",
    )
    (report,) = extract(
        ask(
            kitchen,
            tmp_path / "f",
            backbone="efficientnet_lite0",
            weights=(),
            boxes=str(boxes),
            unit_rows=None,
            draws=None,
        )
    )
    store = open_store(report.store)
    assert report.complete and store.manifest.dataset["axis"] == "frame"
    n_boxes = store.read("n_boxes", np.arange(len(store)))
    first = store.rows_between("one", 0, 0.1)[0]
    assert n_boxes.sum() == 3 and n_boxes[first] == 2
    expected = np.array([[12.8, 9.6, 64, 48], [64, 48, 128, 96]])
    assert np.allclose(store.read("boxes", [first])[0, :2], expected, atol=1e-3)
    assert store.read("scores", [first])[0, :3].tolist() == [0.75, 0.25, 0]  # by score, whatever the file's order
    assert np.abs(store.read("roi", [first])[0, :2]).sum() > 0 and not store.read("roi", [first])[0, 2:].any()


# ---- again -------------------------------------------------------------------------------------------------------


def test_running_again_does_nothing_and_says_so(kitchen, tmp_path):
    extract(ask(kitchen, tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (report,) = extract(ask(kitchen, tmp_path))
    assert report.computed == 0 and report.done_before == 10 and "nothing to do" in report.summary()
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights": ("random:1",)}, "weights"),
        ({"precision": "bf16"}, "precision"),
        ({"dtype": "float32"}, "dtype"),
        ({"backbone": "null", "name": "tiny3d", "keep": ("vector",)}, "network.name"),
    ],
)
def test_another_recipe_is_refused_and_its_fields_named(kitchen, tmp_path, change, field):
    extract(ask(kitchen, tmp_path, limit=2))
    with pytest.raises(UserError, match=rf"(?m)^\s+{field}"):
        extract(ask(kitchen, tmp_path, **change))


def test_another_layer_is_refused(kitchen, tmp_path):
    extract(ask(kitchen, tmp_path, backbone="i3d", limit=1))
    with pytest.raises(UserError, match=r"network\.layer: the store has \"Mixed_5c\", asked for \"Mixed_4f\""):
        extract(ask(kitchen, tmp_path, backbone="i3d", layer="Mixed_4f"))


def test_more_draws_extend_the_store(kitchen, tmp_path):
    (first,) = extract(ask(kitchen, tmp_path))
    before = {name: data for name, data in contents(Path(first.store)).items() if name.startswith("data/")}
    (report,) = extract(ask(kitchen, tmp_path, draws=2))
    assert report.complete and report.computed == 5 and report.rows == 15 and report.sealed == 2
    after = contents(Path(first.store))
    assert all(after[name] == data for name, data in before.items() if not name.endswith("zarr.json"))
    (again,) = extract(ask(kitchen, tmp_path))  # fewer draws are there
    assert again.complete and again.rows == 10 and not again.computed
    store = open_store(first.store)
    assert store.manifest.dataset["draws"] == 2 and verify(store.path) == []
    (whole,) = extract(ask(kitchen, tmp_path / "whole", draws=2))
    other = open_store(whole.store)
    key = lambda s, i: (s.rows["video"][i], s.rows["clip"][i], s.rows["draw"][i], round(s.rows["start_s"][i], 3))  # noqa: E731
    assert {key(store, i) for i in store.ok} == {key(other, i) for i in other.ok}


def test_another_seed_of_the_draws_is_refused(kitchen, tmp_path):
    extract(ask(kitchen, tmp_path, limit=2))
    with pytest.raises(UserError, match="--seed 0"):
        extract(ask(kitchen, tmp_path, seed=1))


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", "a:b"])
def test_a_name_stays_inside_its_root(kitchen, tmp_path, name):
    with pytest.raises(UserError, match="--name"):
        ask(kitchen, tmp_path, name=name)


def test_a_network_is_named_by_its_kind(kitchen, tmp_path):
    with pytest.raises(UserError, match="--detector"):
        extract(ask(kitchen, tmp_path, backbone="faster_rcnn_r50_fpn"))
    with pytest.raises(UserError, match="--backbone"):
        extract(ask(kitchen, tmp_path, backbone=None, detector="tiny3d"))


def test_parts_make_the_whole(kitchen, tmp_path):
    whole = extract(ask(kitchen, tmp_path / "whole"))[0]
    for part in range(3):
        report = extract(ask(kitchen, tmp_path / "parts", shard=(part, 3)))[0]
        assert report.complete
    assert report.sealed == 1
    limited = ask(kitchen, tmp_path / "limit", limit=3)
    counts = [extract(limited)[0].computed for _ in range(4)]
    assert counts == [3, 3, 3, 1]
    expected = contents(Path(whole.store))
    assert contents(Path(report.store)) == expected
    assert contents(tmp_path / "limit" / "small" / "tiny3d.zarr") == expected


def test_a_split_is_extracted_first_and_the_rest_later(tmp_path, kitchen):
    folder = tmp_path / "split"
    write_csv(
        folder / "small.csv", ["one,0.0,1.0,train", "two,0.5,2.0,val", "three,0.2,2.0,val"], "video,start,stop,split"
    )
    shutil.copytree(kitchen / "videos", folder / "videos")
    report = extract(ask(folder, tmp_path / "f", split="val", draws=0))[0]
    store = open_store(report.store)
    assert report.complete and report.computed == 2 and report.sealed is None
    assert (store.clips["split"][store.rows["clip"][store.ok]] == "val").all()
    assert extract(ask(folder, tmp_path / "f", draws=0))[0].computed == 1


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def test_bad_videos_fail_their_own_rows_only(kitchen, tmp_path):
    folder = tmp_path / "bad"
    shutil.copytree(kitchen / "videos", folder / "videos")
    whole = (folder / "videos" / "one.mp4").read_bytes()
    (folder / "videos" / "empty.mp4").write_bytes(b"")
    (folder / "videos" / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "videos" / "short.mp4").write_bytes(whole[: len(whole) // 2])
    for path in folder.rglob("*.mp4"):
        os.utime(path, (time.time() - 60,) * 2)
    write_csv(folder / "small.csv", ["one,0,2", "empty,0,1", "text,0,1", "short,0,1", "two,0,2", "two,50,52"])
    done = run_cli(*cli_arguments(folder, tmp_path / "f"))
    assert done.returncode == 3, done.stderr
    store = open_store(tmp_path / "f" / "small" / "tiny3d.zarr")
    reasons = {}
    for row, (reason, line) in store.failures().items():
        video = store.videos["name"][store.rows["video"][row]]
        reasons.setdefault(video, set()).add(reason)
        assert video in line or "outside" in line
    assert reasons == {"empty": {"empty"}, "text": {"not_video"}, "short": {"truncated"}, "two": {"outside"}}
    assert (store.status() == 1).sum() == 4 and store.sealed
    assert all(reason in done.stdout for reason in ("empty", "not_video", "truncated", "outside"))
    (folder / "videos" / "short.mp4").write_bytes(whole)
    again = run_cli(*cli_arguments(folder, tmp_path / "f", "--retry-failed", "--json"))
    (report,) = json.loads(again.stdout)
    assert again.returncode == 3 and report["computed"] == 2 and "truncated" not in report["failed"]


def test_missing_videos_are_counted_listed_and_may_be_skipped(kitchen, tmp_path):
    folder = tmp_path / "missing"
    (folder / "videos").mkdir(parents=True)
    shutil.copy(kitchen / "videos" / "one.mp4", folder / "videos")
    write_csv(folder / "small.csv", ["one,0,2", "two,0,2", "three,0,2"])
    refused = run_cli(*cli_arguments(folder, tmp_path / "f"))
    assert refused.returncode == 2 and "2 of 3 videos" in refused.stderr and "three" in refused.stderr
    assert not (tmp_path / "f").exists()
    skipped = run_cli(*cli_arguments(folder, tmp_path / "f", "--missing", "skip"))
    assert skipped.returncode == 3 and "4 rows are pending" in skipped.stdout
    for name in ("two", "three"):
        shutil.copy(kitchen / "videos" / f"{name}.mp4", folder / "videos")
    assert run_cli(*cli_arguments(folder, tmp_path / "f")).returncode == 0


def test_a_changed_video_is_listed_and_its_rows_are_left_alone(kitchen, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(kitchen / "videos", folder / "videos")
    shutil.copy(kitchen / "small.csv", folder)
    extract(ask(folder, tmp_path / "f", limit=2))
    media.make_video(folder / "videos" / "one.mp4", "libx264", 50)
    before = contents(tmp_path / "f" / "small" / "tiny3d.zarr")
    (report,) = extract(ask(folder, tmp_path / "f"))
    assert report.changed_videos == ["one"] and not report.complete and report.sealed is None
    after = contents(tmp_path / "f" / "small" / "tiny3d.zarr")
    assert all(after[name] == data for name, data in before.items() if name.startswith(("data/", "probes/one")))


def test_wrong_use_exits_with_2_and_writes_nothing(kitchen, tmp_path):
    cases = [
        (["--precision", "fp16", "--device", "cpu"], "fp16"),
        (["--shard", "3/2"], "--shard"),
        (["--keep", "vector,nonsense"], "nonsense"),
        (["--decoder", "magic"], "magic"),
        (["--split", "nowhere"], "nowhere"),
        (["--layer", "Mixed_9z"], "layer"),
        (["--flow", "tvl1"], "does not read flow"),
    ]
    for more, said in cases:
        done = run_cli(*cli_arguments(kitchen, tmp_path / "f", *more))
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, (more, done.stderr)
    assert not (tmp_path / "f").exists()
    (tmp_path / "file").write_text("")
    done = run_cli(*cli_arguments(kitchen, tmp_path / "file"))
    assert done.returncode == 2 and "cannot write" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_full_disk_ends_with_1_and_loses_nothing(kitchen, tmp_path):
    """The limit on a file's size stands in for a full disk: writing a shard fails as it would there."""
    arguments = cli_arguments(kitchen, tmp_path / "f", "--dtype", "float32")
    run_cli(*arguments, "--limit", 4)
    before = contents(tmp_path / "f" / "small" / "tiny3d.zarr")
    shard = max(len(data) for name, data in before.items() if name.startswith("data/"))
    full = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (shard // 2,) * 2),
        cwd=ROOT,
    )
    assert full.returncode == 1 and "space" in full.stderr and "Traceback" not in full.stderr, full.stderr
    after = contents(tmp_path / "f" / "small" / "tiny3d.zarr")
    assert all(after[name] == data for name, data in before.items() if not name.startswith("probes/"))
    assert run_cli(*arguments).returncode == 0
    assert not [f for f in verify(tmp_path / "f" / "small" / "tiny3d.zarr") if f.severity == "error"]


def test_killed_at_any_moment_and_run_again_it_is_byte_identical(kitchen, tmp_path):
    """A seeded sample; benchmarks/kill_campaign.py kills as often as one likes."""
    clean = run_cli(*cli_arguments(kitchen, tmp_path / "clean"))
    assert clean.returncode == 0, clean.stderr
    rng = random.Random(0)
    arguments = [sys.executable, str(ROOT / "cli.py"), *map(str, cli_arguments(kitchen, tmp_path / "killed"))]
    store = tmp_path / "killed" / "small" / "tiny3d.zarr"
    for _ in range(3):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        while process.poll() is None and not store.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
    assert run_cli(*cli_arguments(kitchen, tmp_path / "killed")).returncode == 0
    assert contents(store) == contents(tmp_path / "clean" / "small" / "tiny3d.zarr")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_stop_at_a_unit_and_say_so(kitchen, tmp_path, number, code):
    folder = tmp_path / "long"
    shutil.copytree(kitchen / "videos", folder / "videos")
    write_csv(folder / "small.csv", [f"three,{i / 100},{i / 100 + 1}" for i in range(200)])
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *map(str, cli_arguments(folder, tmp_path / "f"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    status = tmp_path / "f" / "small" / "tiny3d.zarr" / "rows" / "status"
    while process.poll() is None and not list(status.glob("c.*")):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "stopping after the batches in work" in err and "rows are pending; run again" in out
    store = open_store(tmp_path / "f" / "small" / "tiny3d.zarr")
    done = (store.status() == 1).sum()
    assert 0 < done < 400 and done % 2 == 0


# ---- more than one store, more than one process ------------------------------------------------------------------


def test_unreadable_videos_of_a_frame_store_are_named_and_it_is_not_sealed(kitchen, tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(kitchen / "videos", folder / "videos")
    whole = (folder / "videos" / "two.mp4").read_bytes()
    (folder / "videos" / "two.mp4").write_text("no video\n" * 100)
    shutil.copy(kitchen / "small.csv", folder)
    options = {"backbone": "efficientnet_lite0", "weights": (), "draws": None, "unit_rows": None}
    (report,) = extract(ask(folder, tmp_path / "f", **options))
    assert not report.complete and report.sealed is None and list(report.videos_without_rows) == ["two"]
    assert "two" in report.summary() and "no video" not in report.summary()
    (folder / "videos" / "two.mp4").write_bytes(whole)
    (report,) = extract(ask(folder, tmp_path / "f", **options))
    assert report.computed > 0 and report.complete and report.sealed == 1 and len(open_store(report.store).ok) > 0
    assert verify(report.store) == []


def test_weights_are_given_to_the_network_they_name(kitchen, tmp_path):
    from pipelines.planning import plan_extraction

    labelled = write_csv(tmp_path / "small.csv", ["one,0,1,a,b"], "video,start,stop,verb,noun")

    def weights_of(*values):
        request = ask(kitchen, tmp_path, dataset=str(labelled), backbone="i3d", weights=values)
        return [job.weights for job in plan_extraction(request, headers_only=True)]

    assert weights_of() == [None, None]
    assert weights_of("random:3") == ["random:3", "random:3"]
    assert weights_of("mine/lr=0.1/w.pt") == ["mine/lr=0.1/w.pt", None]
    assert weights_of("i3d=a.pt", "random:1") == ["a.pt", "random:1"]
    assert weights_of("faster_rcnn_r50_fpn=d.pth") == [None, "d.pth"]
    with pytest.raises(UserError, match="i3d_flow does not run here"):
        weights_of("i3d_flow=a.pt")


def test_what_the_second_store_lacks_is_said_before_the_first_is_computed(kitchen, tmp_path):
    labelled = write_csv(tmp_path / "small.csv", ["one,0,1,a,b"], "video,start,stop,verb,noun")
    request = ask(kitchen, tmp_path / "f", dataset=str(labelled), backbone="i3d",
                  weights=("random:0", f"faster_rcnn_r50_fpn={tmp_path / 'none.pth'}"))  # fmt: skip
    with pytest.raises(UserError, match="none.pth"):
        extract(request)
    assert not list(tmp_path.rglob("*.zarr"))


def test_who_loses_the_race_of_creation_still_compares_recipes(kitchen, tmp_path, monkeypatch):
    import pipelines.extraction as extraction

    real = extraction.create_store

    def beaten(path, *arguments, **options):
        monkeypatch.setattr(extraction, "create_store", real)
        extract(ask(kitchen, tmp_path, dtype="float32", limit=1))
        return real(path, *arguments, **options)

    monkeypatch.setattr(extraction, "create_store", beaten)
    with pytest.raises(UserError, match='dtype: the store has "float32", asked for "float16"'):
        extract(ask(kitchen, tmp_path))


def test_units_that_another_process_finished_are_not_computed_again(kitchen, tmp_path):
    class Bar:
        """A progress bar that lets another extraction finish the store at its first step."""

        def __init__(self):
            self.other = None

        def update(self, rows):
            if self.other is None:
                self.other = []  # not again from within
                self.other = extract(ask(kitchen, tmp_path))

        def set_postfix_str(self, text):
            self.text = text

        def close(self):
            self.closed = True

    bar = Bar()
    (report,) = extract(ask(kitchen, tmp_path), progress=lambda title, total: bar)
    assert bar.other[0].complete and bar.other[0].computed >= 8
    assert report.computed < 10 and report.pending == 0


def test_a_stop_within_a_unit_keeps_its_rows_and_resumes_to_the_same_bytes(kitchen, tmp_path):
    stop = threading.Event()

    class Bar:
        """A progress bar that asks to stop after the first batch."""

        def update(self, rows):
            stop.set()

        def set_postfix_str(self, text):
            self.text = text

        def close(self):
            self.closed = True

    options = {"unit_rows": 10, "batch_size": 2}
    (whole,) = extract(ask(kitchen, tmp_path / "whole", **options))
    (report,) = extract(ask(kitchen, tmp_path / "f", **options), stop=stop, progress=lambda title, total: Bar())
    store = open_store(report.store)
    assert report.stopped and 2 <= report.computed < 10 and report.computed == (store.status() == 1).sum()
    (report,) = extract(ask(kitchen, tmp_path / "f", **options))
    assert report.complete and contents(Path(report.store)) == contents(Path(whole.store))


def test_shares_of_a_retry_do_not_lock_each_other_out(kitchen, tmp_path):
    folder = tmp_path / "retry"
    (folder / "videos").mkdir(parents=True)
    for name in ("one", "two", "three"):
        path = folder / "videos" / f"{name}.mp4"
        path.write_text("no video\n" * 100)
        os.utime(path, (time.time() - 60,) * 2)
    write_csv(folder / "small.csv", ["one,0,2", "two,0,2", "three,0,2"])
    (first,) = extract(ask(folder, tmp_path / "f", draws=0, unit_rows=1))
    assert first.failed == {"not_video": 3} and first.sealed == 1
    for name in ("one", "two", "three"):
        shutil.copy(kitchen / "videos" / f"{name}.mp4", folder / "videos")
    reports = [
        extract(ask(folder, tmp_path / "f", draws=0, unit_rows=1, shard=(i, 3), retry_failed=True))[0] for i in range(3)
    ]
    assert [report.computed for report in reports] == [1, 1, 1] and reports[-1].failed == {}
    assert not [f for f in verify(reports[-1].store) if f.severity == "error"]


def test_a_changed_video_of_a_finished_store_is_listed(kitchen, tmp_path):
    folder = tmp_path / "finished"
    shutil.copytree(kitchen / "videos", folder / "videos")
    shutil.copy(kitchen / "small.csv", folder)
    assert extract(ask(folder, tmp_path / "f"))[0].complete
    os.utime(folder / "videos" / "one.mp4")  # touched, not changed
    assert extract(ask(folder, tmp_path / "f"))[0].complete
    media.make_video(folder / "videos" / "one.mp4", "libx264", 50)
    (report,) = extract(ask(folder, tmp_path / "f"))
    assert report.changed_videos == ["one"] and not report.complete and report.computed == 0


def test_frame_stores_refuse_a_place_that_cannot_be_written(kitchen, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        extract(ask(kitchen, tmp_path / "file", backbone="efficientnet_lite0", weights=(), draws=None))
