"""Windows, draws and instants: exact on the grid, the same for ever, and inside their segments."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from errors import UserError
from extract.datasets.base import strings
from extract.decode import TOLERANCE_S
from extract.sampling import (
    PRESETS,
    ClipSampling,
    GridSampling,
    SegmentSampling,
    clip_rows,
    counter_uniform,
    frame_rows,
    instants,
    object_windows,
    preset_for,
)
from extract.transforms import Resize

I3D = ClipSampling(frames=64, stride=2, fps=60.0)


def clips(*segments, video=None, split="train"):
    """A clips table of (start_s, stop_s) segments, ids c0, c1, ..."""
    start, stop = np.array(segments, dtype=np.float64).T
    n = len(start)
    return {
        "id": strings(f"c{i}" for i in range(n)),
        "video": np.zeros(n, np.int32) if video is None else np.array(video, np.int32),
        "start_s": start,
        "stop_s": stop,
        "split": strings([split] * n),
    }


def many(n, seed=0):
    """n segments on the 60 fps grid in 50 videos."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 100_000, n)
    length = rng.integers(30, 2000, n)
    return clips(*zip(first / 60, (first + length) / 60, strict=True), video=rng.integers(0, 50, n))


def test_centre_window_of_an_epic_segment():
    # uid 0: frames 8..202 (1-based, stop exclusive) are grid instants 7..200; the middle one is 104
    rows = clip_rows(clips((7 / 60, 201 / 60)), I3D)
    assert rows["start_s"][0] == (104 - 64) / 60 and rows["stop_s"][0] == (104 + 64) / 60
    times = instants(rows, I3D)
    assert times.shape == (1, 64) and times.dtype == np.float64
    assert np.array_equal(times[0], np.arange(40, 168, 2) / 60)


def test_window_is_nominal_and_never_clamped():
    rows = clip_rows(clips((0.0, 0.5)), I3D)
    assert rows["start_s"][0] == (15 - 64) / 60 < 0
    assert instants(rows, I3D)[0, 0] == (15 - 64) / 60


def test_columns_and_order():
    table = clips((5, 6), (1, 2), (3, 4), video=[1, 1, 0])
    rows = clip_rows(table, I3D, draws=2)
    kinds = {name: rows[name].dtype.name for name in rows}
    assert kinds == {
        "video": "int32", "clip": "int32", "k": "int32", "draw": "int16",
        "start_s": "float64", "stop_s": "float64"
    }  # fmt: skip
    assert len(rows["clip"]) == 9 and not rows["k"].any()
    assert sorted(zip(rows["video"], rows["start_s"], strict=True)) == list(
        zip(rows["video"], rows["start_s"], strict=True)
    )


def test_draws_lie_inside_and_fill_the_segment():
    table = clips(*[(2.0, 4.0)] * 400)
    rows = clip_rows(table, I3D, draws=4)
    drawn = rows["draw"] > 0
    centre = (rows["start_s"] + rows["stop_s"])[drawn] / 2
    assert drawn.sum() == 1600 and centre.min() >= 2.0 and centre.max() < 4.0
    counts = np.histogram(centre, bins=10, range=(2, 4))[0]
    assert counts.min() > 110 and counts.max() < 215  # uniform: 160 each


def test_draws_only_for_training_clips():
    table = clips((0, 2), (2, 4), (4, 6))
    table["split"] = strings(["train", "val", "test_s1"])
    rows = clip_rows(table, I3D, draws=3)
    assert [int((rows["clip"] == i).sum()) for i in range(3)] == [4, 1, 1]
    rows = clip_rows(table, I3D, draws=3, training=np.array([True, True, False]))
    assert [int((rows["clip"] == i).sum()) for i in range(3)] == [4, 4, 1]


def test_growth_never_moves_a_draw():
    def by_identity(table, draws, seed=0):
        rows = clip_rows(table, I3D, draws=draws, seed=seed)
        keys = zip(table["id"][rows["clip"]], rows["draw"], strict=True)
        return dict(zip(keys, rows["start_s"], strict=True))

    small, large = many(50), many(80)
    large = {name: np.concatenate([column[:0], column])[::-1] for name, column in large.items()}
    small = {name: column[-50:] for name, column in large.items()}
    before, after = by_identity(small, 2), by_identity(large, 5)
    assert len(after) == 80 * 6 and all(after[key] == start for key, start in before.items())
    assert by_identity(small, 2, seed=1) != before


def test_short_segments_and_foreign_grids():
    # 25 fps instants at 0.00, 0.04, ...; [1.01, 1.03) holds none: the frame on screen at its middle
    sampling = ClipSampling(4, 1, 25.0)
    rows = clip_rows(clips((1.01, 1.03), (1.02, 1.10)), sampling, draws=20)
    centre = np.rint(rows["start_s"] * 25).astype(int) + 2
    assert set(centre[rows["clip"] == 0]) == {25}
    assert set(centre[rows["clip"] == 1]) == {26, 27}


def test_clips_without_a_stop():
    table = clips((0, np.nan), (1, 2), (3, np.nan), video=[0, 0, 1])
    with pytest.raises(UserError, match="2 clips have no stop.*'c0'"):
        clip_rows(table, I3D)
    rows = clip_rows(table, I3D, durations=np.array([10.0, np.nan]))
    assert rows["clip"].tolist() == [1, 0] and (rows["start_s"] + rows["stop_s"])[1] / 2 == 5.0
    rows = clip_rows(table, I3D, durations=np.array([10.0, 2.0]))  # c2 starts after the end of its video
    assert rows["clip"].tolist() == [1, 0, 2] and (rows["start_s"] + rows["stop_s"])[2] / 2 == 3.0


def test_frame_rows():
    rows = frame_rows(np.array([1.0, np.nan, 0.0, 1.2]), GridSampling(2.0))
    assert rows["video"].tolist() == [0, 0, 3, 3, 3] and rows["k"].tolist() == [0, 1, 0, 1, 2]
    assert rows["start_s"].tolist() == [0.0, 0.5, 0.0, 0.5, 1.0] == rows["stop_s"].tolist()
    assert set(rows["clip"]) == {-1} and instants(rows, GridSampling(2.0))[:, 0].tolist() == rows["start_s"].tolist()
    assert len(frame_rows(np.array([]), GridSampling(2.0))["k"]) == 0
    third = frame_rows(np.array([100 / 3]), GridSampling(30.0))
    assert len(third["k"]) == 1000  # 33.33... s at 30 fps, not one more for rounding


def test_every_frame_row_is_inside_its_video():
    """As decoders judge it (`FrameSource.at`): an instant is outside if t + 0.5 ms >= duration."""
    assert len(frame_rows(np.array([17.0003]), GridSampling(2.0))["k"]) == 34  # 17.0 s would be outside
    steps = np.arange(0, 12)
    near = [0, 1e-9, 1e-6, 3e-4, 5e-4, 5.1e-4, 1e-3, 1 / 60]
    for fps in (0.1, 2.0, 24.0, 25.0, 30000 / 1001):
        durations = np.concatenate([steps / fps + sign * x for x in near for sign in (1, -1)])
        rows = frame_rows(durations, GridSampling(fps))
        assert not (rows["start_s"] + TOLERANCE_S >= durations[rows["video"]]).any()
        counts = np.bincount(rows["video"], minlength=len(durations))
        left = durations - TOLERANCE_S - counts / fps  # of the first instant that has no row
        assert (left < 1e-5 / fps).all(), "no instant inside was left out"


def test_instants_are_exact_grid_points():
    for fps in (60.0, 25.0, 24.0, 50.0, 30.0):
        sampling = ClipSampling(16, 3, fps)
        rows = clip_rows(many(300), sampling, draws=2)
        times = instants(rows, sampling)
        assert np.array_equal(times, np.rint(times * fps) / fps)
        assert np.array_equal(times[:, 0], rows["start_s"])


def test_flow_images_are_consecutive():
    """Every second instant of the 60 fps grid shows the next image of the 30 a second published flow."""
    rows = clip_rows(many(200), I3D)
    shown = np.floor(instants(rows, I3D) * 30 + 0.015).astype(int)
    assert (np.diff(shown, axis=1) == 1).all()


def test_speed_of_epic_size():
    table = many(39_448)
    start = time.perf_counter()
    rows = clip_rows(table, I3D, draws=4)
    assert len(rows["clip"]) == 39_448 * 5
    assert time.perf_counter() - start < 3


def test_counter_uniform_is_a_fixed_function():
    # fixed for ever: these numbers are in stores' rows
    assert counter_uniform(0, "clip", 1).item() == 0.570105915384832
    assert counter_uniform(7, "P01_01 é", 4).item() == 0.7925876480080273
    assert counter_uniform(0).item() == (0xE220A8397B1DCDAF >> 11) * 2.0**-53  # splitmix64's first from seed 0
    u = counter_uniform(3, strings(f"{i}" for i in range(20_000)), 1)
    assert u.dtype == np.float64 and u.min() >= 0 and u.max() < 1 and len(np.unique(u)) == 20_000
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003
    grid = counter_uniform(3, strings(["a", "b"])[:, None], np.arange(3))
    assert grid.shape == (2, 3) and grid[1, 2] == counter_uniform(3, "b", 2)
    assert counter_uniform(0, "a", "b") != counter_uniform(0, "b", "a")
    assert counter_uniform(-1, "a") != counter_uniform(1, "a")


def test_presets():
    def spec(family, reads="rgb_clip", **values):
        own = {
            "clip_len": 64,
            "stride": 1,
            "fps": 25.0,
            "resize": {"mode": "short_side", "size": 256, "crop": 224},
        }
        return SimpleNamespace(family=family, kind="backbone", reads=reads, **{**own, **values})

    assert preset_for("epic55", spec("i3d")).sampling == ClipSampling(64, 2, 60.0)
    assert preset_for("epic55", spec("i3d")).sampling.seconds == pytest.approx(2.1333, abs=1e-4)
    assert preset_for("epic55", spec("i3d", "flow_clip")) == preset_for("epic55", spec("i3d"))
    assert preset_for("epic55", spec("i3d")).resize == {"mode": "squash", "size": 256}
    assert preset_for("toykitchen", spec("i3d")).sampling == ClipSampling(16, 4, 60.0)
    assert preset_for("", spec("i3d")).sampling == ClipSampling(64, 1, 25.0)
    assert preset_for("", spec("i3d")).resize == {"mode": "short_side", "size": 256, "crop": 224}
    detector = preset_for("epic55", spec("faster_rcnn", "rgb_frame", resize={"mode": "none"}))
    assert detector.sampling == GridSampling(2.0) and detector.sampling.axis == "frame"
    for preset in PRESETS.values():
        Resize(**preset.resize)
    assert object_windows("epic55") == {"noun": 6.0, "verb": 4.0}
    assert object_windows("toykitchen")["noun"] == 2.0


@pytest.mark.parametrize("wrong", [(0, 1, 25.0), (8, 0, 25.0), (8, 1, 0.0), (8, 1, float("nan"))])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(UserError, match="sampling needs"):
        ClipSampling(*wrong)


def test_impossible_draws_are_refused():
    with pytest.raises(UserError, match="--draws -1"):
        clip_rows(clips((0, 1)), I3D, draws=-1)


def test_what_the_user_chose_counts_before_a_preset():
    from extract.networks import network_spec

    spec = network_spec("i3d_rgb", clip_len=32, resize={"mode": "squash", "size": 128})
    assert preset_for("epic55", spec).sampling == ClipSampling(64, 2, 60.0)
    chosen = preset_for("epic55", spec, own=("clip_len", "resize"))
    assert chosen.sampling == ClipSampling(32, 2, 60.0) and chosen.resize == {"mode": "squash", "size": 128}
    flow = network_spec("flow_images", clip_len=1)
    assert preset_for("epic55", flow, "segment", own=("clip_len",)).sampling == SegmentSampling(1, 2, 60.0, hop=2)
