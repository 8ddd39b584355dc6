"""EPIC-55 end to end, from its real CSVs: frame folders and published flow of one video, the others missing."""

import json
import os
from pathlib import Path

import media
import numpy as np
import pytest
from click.testing import CliRunner

import cli
from pipelines import Extraction, extract
from stores import open_store

FRAMES = 240  # of P01_01 on the 60 fps grid: its first clip is frames 8 to 202


@pytest.fixture(scope="module")
def data(shared, tmp_path_factory):
    """A data root: the real annotations, RGB frames of P01_01, and flow images that say their own number."""
    root = tmp_path_factory.mktemp("data")
    epic = root / "epic55"
    epic.mkdir()
    os.symlink(shared / "annotations" / "epic-kitchens-55", epic / "annotations")
    for number in range(1, FRAMES + 1):
        name = f"frame_{number:010d}.jpg"
        media.write_image(epic / "rgb_frames" / "P01" / "P01_01" / name, media.picture(number, 64, 48))
        if number % 2:
            value = (number + 1) // 2
            for component, level in (("u", value), ("v", 255 - value)):
                flat = np.full((48, 64, 3), level, np.uint8)
                index = f"frame_{value:010d}.jpg"
                media.write_image(epic / "flow_frames" / "P01" / "P01_01" / component / index, flat)
    return root


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def test_check_prints_the_counts(data):
    done = run("datasets", "check", "epic55", "--data", data, "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 1  # 431 videos are missing
    text = json.dumps(facts)
    for count in (39448, 28472, 23191, 5281, 8047, 2929, 125, 352, 2513):
        assert str(count) in text, count


def test_a_bare_extract_plans_every_store_that_saoa_reads(data, tmp_path):
    done = run(
        "plan",
        "--dataset",
        "epic55",
        "--backbone",
        "i3d",
        "--data",
        data,
        "--features",
        tmp_path / "f",
        "--missing",
        "skip",
        "--device",
        "none",
        "--json",
    )
    clip, frame = json.loads(done.stdout)
    assert clip["store"].endswith("epic55/i3d_rgb.zarr") and clip["rows"] == 39448 + 2 * 23191
    assert clip["arrays"] == {"spatial": [8, 8, 1024, "float16"], "vector": [1024, "float16"], "n_padded": ["int16"]}
    assert frame["store"].endswith("epic55/faster_rcnn_r50_fpn.zarr") and frame["rows"] == FRAMES / 60 * 2
    refused = run("extract", "--dataset", "epic55", "--backbone", "i3d", "--data", data, "--features", tmp_path / "f")
    assert refused.exit_code == 2 and "431 of 432 videos" in refused.output and not (tmp_path / "f").exists()


def test_frame_folders_are_read_by_the_grid(data, tmp_path):
    (report,) = extract(
        Extraction(
            dataset="epic55",
            backbone="null",
            keep=("vector",),
            data=data,
            only=True,
            draws=0,
            features=(tmp_path,),
            missing="skip",
            limit=1,
            dtype="float32",
        )
    )
    assert report.computed == 1 and report.pending == 39447 and len(report.missing_videos) == 431
    store = open_store(report.store)
    (row,) = store.ok
    assert (
        store.clips["id"][store.rows["clip"][row]] == "0"
    )  # frames 8 to 202: instants 7/60 to 201/60, the middle 104/60
    assert store.rows["start_s"][row] == (104 - 64) / 60 and store.read("n_padded", [row])[0] == 0
    shown = np.arange(40, 40 + 128, 2) + 1  # file numbers of the window's instants
    grey = np.array([media.picture(k, 64, 48).mean() for k in shown]) / 255
    assert np.corrcoef(store.read("vector", [row])[0], grey)[0, 1] > 0.98


def test_flow_reads_64_consecutive_published_images(data, tmp_path, shared):
    (report,) = extract(
        Extraction(
            dataset="epic55",
            backbone="i3d_flow",
            weights=("random:0",),
            data=data,
            only=True,
            draws=0,
            features=(tmp_path,),
            missing="skip",
            limit=1,
        )
    )
    store = open_store(report.store)
    assert report.computed == 1 and store.manifest.arrays["spatial"].row_shape == (8, 8, 1024)
    assert store.read("spatial", store.ok).astype(np.float32).std() > 0.1
    facts = json.loads(
        run(
            "store",
            "inspect",
            report.store,
            "0",
            "--data",
            data,
            "--recompute",
            "--json",
            "--out",
            tmp_path / "flow.png",
        ).stdout
    )
    assert not facts["differs"] and facts["frames"] == [20, 83]  # image index of grid instants 40 and 166


def test_flow_without_flow_frames_says_so(shared, tmp_path):
    (tmp_path / "epic55" / "videos").mkdir(parents=True)
    os.symlink(shared / "annotations" / "epic-kitchens-55", tmp_path / "epic55" / "annotations")
    done = run(
        "extract", "--dataset", "epic55", "--backbone", "i3d_flow", "--data", tmp_path, "--features", tmp_path / "f"
    )
    assert done.exit_code == 2 and "flow_frames/" in done.output and not Path(tmp_path / "f").exists()
