"""The command line: fast help, codes, JSON, looking into stores."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import media
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from commands.options import shard_of_slurm
from errors import count_of
from stores import open_store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two videos, small.csv and an extracted store of each axis."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "videos").mkdir()
    for name, n in [("one", 72), ("two", 60)]:
        media.make_video(folder / "videos" / f"{name}.mp4", "libx264", n)
    (folder / "small.csv").write_text(
        "id,video,start,stop,verb,noun,split\na,one,0,1,cut,bread,train\nb,one,1,2.5,wash,cup,train\nc,two,0,2,cut,cup,val\n"
    )
    (folder / "boxes.csv").write_text("video,time,x1,y1,x2,y2\none,0.5,0.1,0.1,0.5,0.5\n")
    common = [
        "extract",
        "--dataset",
        str(folder / "small.csv"),
        "--videos",
        str(folder / "videos"),
        "--features",
        str(folder / "features"),
        "--only",
    ]
    clip = run(*common, "--backbone", "tiny3d", "--weights", "random:0", "--draws", "1")
    frame = run(*common, "--backbone", "efficientnet_lite0", "--boxes", str(folder / "boxes.csv"))
    assert clip.exit_code == frame.exit_code == 0, clip.output + frame.output
    return folder


def run(*arguments):
    """The command in this process; `output` holds both streams."""
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def where(made: Path) -> list[str]:
    return ["--dataset", str(made / "small.csv"), "--videos", str(made / "videos")]


def test_help_is_fast_and_needs_no_torch():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", str(ROOT / "cli.py"), "--help"], capture_output=True, text=True
        )
        times.append(time.perf_counter() - start)
    assert done.returncode == 0 and "extract" in done.stdout
    assert not {"torch", "numpy", "av"} & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert min(times) < 0.4 * (1 + os.getloadavg()[0]), times  # alone it takes 0.15 s; a busy machine gets its share


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["extract"],
        ["plan"],
        ["train-head"],
        ["evaluate"],
        ["plot"],
        ["demo"],
        ["store", "info"],
        ["store", "verify"],
        ["store", "inspect"],
        ["datasets", "list"],
        ["datasets", "check"],
        ["weights", "list"],
        ["networks", "list"],
    ],
)
def test_every_command_explains_itself(command):
    assert run(*command, "--help").exit_code == 0


def test_plan_writes_nothing(made):
    before = sorted(made.rglob("*"))
    done = run(
        "plan",
        *where(made),
        "--features",
        made / "features",
        "--backbone",
        "i3d",
        "--weights",
        "random:0",
        "--device",
        "none",
        "--json",
    )
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and [job["axis"] for job in facts] == ["clip", "frame"]
    assert facts[0]["rows"] == 3 + 2 * 2 and facts[0]["network"] == "i3d_rgb"
    assert facts[1]["network"] == "faster_rcnn_r50_fpn" and facts[1]["rows"] == 6 + 5
    assert sorted(made.rglob("*")) == before


def test_plan_times_a_forward_pass(made):
    done = run("plan", *where(made), "--features", made / "f", "--backbone", "tiny3d", "--only", "--json")
    assert json.loads(done.stdout)[0]["seconds_a_row"] > 0 and "random weights" not in done.stderr


def test_info_and_verify(made):
    store = made / "features" / "small" / "tiny3d.zarr"
    info = json.loads(run("store", "info", store, "--json").stdout)
    assert json.dumps(info)  # plain JSON
    whole = run("store", "verify", store)
    assert whole.exit_code == 0 and "whole" in whole.stdout
    shard = next((store / "data" / "spatial").glob("c.0*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = run("store", "verify", store)
    assert damaged.exit_code == 1 and "data/spatial/c.0" in damaged.stdout, damaged.output
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert run("store", "verify", store).exit_code == 0


def test_inspect_shows_the_frames_and_recomputes(made, tmp_path):
    store = made / "features" / "small" / "tiny3d.zarr"
    done = run("store", "inspect", store, "b", *where(made), "--recompute", "--out", tmp_path / "b.png", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts["status"] == "ok" and facts["verb"] == "1 wash" and not facts["differs"]
    assert len(np.unique(np.asarray(Image.open(tmp_path / "b.png")).reshape(-1, 3), axis=0)) > 100
    frames = made / "features" / "small" / "efficientnet_lite0_boxes.zarr"
    done = run(
        "store", "inspect", frames, "one@0.5", *where(made), "--recompute", "--out", tmp_path / "f.png", "--json"
    )
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts["n_boxes"] == 1 and not facts["differs"]
    yellow = np.asarray(Image.open(tmp_path / "f.png")).astype(int)
    assert ((yellow[..., 0] > 200) & (yellow[..., 1] > 200) & (yellow[..., 2] < 100)).sum() > 50


def test_inspect_tells_a_row_that_is_not_what_the_network_says(made, tmp_path):
    """A row with a good checksum and the wrong values: only computing it again can tell."""
    import shutil

    from stores import OK

    copy = tmp_path / "tiny3d.zarr"
    shutil.copytree(made / "features" / "small" / "tiny3d.zarr", copy)
    store = open_store(copy)
    store.unseal()
    unit = store.units[0]
    arrays = {name: store.read(name, np.arange(len(unit))) for name in store.manifest.arrays}
    (copy / "rows" / "status" / "c.0").unlink()
    open_store(copy).commit(unit, {**arrays, "vector": arrays["vector"] * 1.2}, np.full(len(unit), OK))
    done = run("store", "inspect", copy, "b", *where(made), "--recompute", "--out", tmp_path / "x.png")
    assert done.exit_code == 1, done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "--dataset", "epic5", "--backbone", "i3d"], "epic55"),
        (["extract", "--dataset", "epic55", "--backbone", "i3d"], "CLIPBANK_DATA"),
        (["extract", "--dataset", "none.csv", "--backbone", "i3d"], "none.csv"),
        (["extract", "--dataset", "epic55"], "--backbone"),
        (["extract", "--dataset", "epic55", "--backbone", "i3", "--detector", "x"], "--detector and --expert"),
        (["extract", "--dataset", "epic55", "--backbone", "i4d"], "i3d"),
        (["store", "info", "nowhere.zarr"], "nowhere.zarr"),
        (["store", "verify", "nowhere.zarr"], "nowhere.zarr"),
        (["store", "inspect", "nowhere.zarr", "a"], "nowhere.zarr"),
        (["train-head", "saoo"], "saoa"),
        (["train-head", "saoa"], "cli.py extract"),
        (["train-head", "saoa", "--features", "."], "cli.py extract"),
        (["train-head", "saoa", "--features", "nowhere"], "--features nowhere: no such folder"),
        (["train-head", "t2vlad", "--features", "nowhere"], "--features nowhere: no such folder"),
        (["train-backbone", "--backbone", "s3d", "--features", "nowhere"], "--features nowhere: no such folder"),
        (["train-recogniser", "--backbone", "resnet50", "--target", "a", "--features", "no"], "no: no such folder"),
        (["sweep", "saoa", "--features", "nowhere"], "--features nowhere: no such folder"),
        (["evaluate", "nowhere"], "nowhere"),
        (["plot", "nowhere"], "nowhere"),
        (["datasets", "check", "epic55"], "CLIPBANK_DATA"),
    ],
)
def test_wrong_use_is_one_clear_message(arguments, said, monkeypatch, tmp_path):
    for name in ("CLIPBANK_DATA", "CLIPBANK_FEATURES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output, done.output


def test_the_first_root_is_made_and_the_others_must_be_there(made, tmp_path):
    arguments = ["plan", *where(made), "--backbone", "tiny3d", "--only", "--device", "none", "--features"]
    assert run(*arguments, tmp_path / "new").exit_code == 0
    done = run(*arguments, tmp_path / "new", "--features", tmp_path / "typo")
    assert done.exit_code == 2 and f"--features {tmp_path / 'typo'}: no such folder" in done.output


def test_inspect_of_a_clip_that_is_not_there(made):
    store = made / "features" / "small" / "tiny3d.zarr"
    assert "no clip 'z'" in run("store", "inspect", store, "z", *where(made)).output
    assert "no draw 7" in run("store", "inspect", store, "a", "--draw", "7", *where(made)).output
    frames = made / "features" / "small" / "efficientnet_lite0_boxes.zarr"
    assert "VIDEO@SECONDS, such as one@2.5, not 'one'" in run("store", "inspect", frames, "one", *where(made)).output
    said = run("store", "inspect", frames, "three@0.5", *where(made))
    assert said.exit_code == 2
    assert "no row of a video 'three'; name one VIDEO@SECONDS, such as one@2.5" in said.output


def test_a_row_is_named_by_the_file_of_its_video_too(made, tmp_path):
    frames = made / "features" / "small" / "efficientnet_lite0_boxes.zarr"
    done = run("store", "inspect", frames, "one.mp4@0.5", *where(made), "--out", tmp_path / "f.png", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["video"] == "one" and json.loads(done.stdout)["window_s"] == [0.5, 0.5]


def test_inspect_without_the_csv_says_which(made):
    store = made / "features" / "small" / "tiny3d.zarr"
    assert "--dataset small.csv --videos" in run("store", "inspect", store, "a").output
    done = run("store", "inspect", store, "a", *where(made), "--out", "/proc/none/a.png")
    assert done.exit_code == 2 and "--out" in done.output


def test_lines_count_one_row_and_many():
    assert [count_of(n, "row") for n in (0, 1, 2, np.int64(2000))] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert [count_of(n, "box is", "boxes are") for n in (1, 2)] == ["1 box is", "2 boxes are"]


def test_version_works_without_an_installation():
    assert run("--version").output.startswith("clipbank")


def test_shard_of_a_slurm_array(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "8")
    assert shard_of_slurm() == "4/8"
    monkeypatch.setenv("SLURM_ARRAY_TASK_STEP", "2")
    assert shard_of_slurm() == "2/8"
    monkeypatch.delenv("SLURM_ARRAY_TASK_COUNT")
    assert shard_of_slurm() is None


def test_ctrl_c_ends_any_command_with_130(monkeypatch):
    import pipelines.evaluation

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines.evaluation, "evaluate", interrupted)
    assert run("evaluate", "nowhere").exit_code in (2, 130)
    assert run("evaluate", ".").exit_code == 130


def test_inspect_of_a_row_that_failed_tells_why(made, tmp_path):
    folder = tmp_path / "failed"
    (folder / "videos").mkdir(parents=True)
    media.make_video(folder / "videos" / "one.mp4", "libx264", 30)
    (folder / "videos" / "text.mp4").write_text("no video\n" * 50)
    (folder / "f.csv").write_text("id,video,start,stop\na,one,0,1\nb,text,0,1\n")
    data = ["--dataset", folder / "f.csv", "--videos", folder / "videos"]
    run("extract", *data, "--features", tmp_path, "--backbone", "tiny3d", "--weights", "random:0", "--draws", "0")
    done = run("store", "inspect", tmp_path / "f" / "tiny3d.zarr", "b", *data, "--out", tmp_path / "b.png", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts["status"] == "failed" and "not_video" in facts["failure"]
