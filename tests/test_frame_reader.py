"""Stores of frames, and the frames that come out of them at given instants."""

from dataclasses import replace

import numpy as np
import pytest
from frame_samples import colour_dataset, colour_frames, frames_request

from errors import UserError
from extract.datasets import load_dataset
from extract.networks import create_network, network_spec
from extract.transforms import Resize
from pipelines import extract
from pipelines.frame_reader import FrameReader, VideoFrames
from stores import open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    colour_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def readers(folder):
    jpeg = FrameReader(open_store(colour_frames(folder)))
    raw = FrameReader(
        open_store(colour_frames(folder, name="raw", option=(*frames_request(folder).option, "quality=0")))
    )
    dataset = load_dataset(folder / "colours.csv", videos=folder / "videos")
    return jpeg, raw, VideoFrames(dataset, Resize("squash", 32))


VIDEOS = np.array([2, 0, 0, 3])
TIMES = np.array([0.0, 0.5, 1.7, 2.96])[:, None] + np.arange(5) * 0.04


def test_raw_frames_are_those_of_the_videos(readers):
    _, raw, videos = readers
    for stored, decoded in zip(raw.read(VIDEOS, TIMES), videos.read(VIDEOS, TIMES), strict=True):
        assert stored.dtype == np.uint8 and stored.shape == (5, 32, 32, 3)
        assert np.array_equal(stored, decoded)


def test_jpegs_are_close_to_them(readers):
    jpeg, raw, _ = readers
    difference = np.abs(np.stack(jpeg.read(VIDEOS, TIMES)).astype(int) - np.stack(raw.read(VIDEOS, TIMES)))
    assert difference.mean() < 6 and jpeg.size == raw.size == (32, 32) and jpeg.channels == 3


def test_instants_between_rows_before_the_first_and_behind_the_last(readers):
    jpeg, raw, _ = readers
    rows = raw.rows(np.array([1]), np.array([[-3.0, 0.0, 0.039, 0.04, 0.0799, 4.76, 99.0]]))[0]
    assert (rows - rows[0]).tolist() == [0, 0, 0, 1, 1, 119, 119]
    assert raw.step_s == jpeg.step_s == 0.04 and raw.duration_s(np.array([1])) == pytest.approx(4.8)
    assert raw.usable(VIDEOS, TIMES).all()


def test_a_clip_with_a_lost_frame_is_not_usable(folder, tmp_path):
    (report,) = extract(frames_request(folder, name="part", limit=40, unit_rows=40))
    reader = FrameReader(open_store(report.store))
    assert reader.usable(np.array([0, 0, 3]), np.array([[0.0, 1.5], [1.5, 1.7], [0.0, 0.1]])).tolist() == [
        True,
        False,
        False,
    ]


def test_stores_of_other_things_are_refused(folder):
    of_clips = {"backbone": "tiny3d", "weights": ("random:0",), "option": (), "draws": 0, "only": True}
    (report,) = extract(replace(frames_request(folder), **of_clips))
    with pytest.raises(UserError, match="holds no single frames: make such a store with extract --backbone frames"):
        FrameReader(open_store(report.store))


def test_frames_of_any_size_and_a_cap_that_holds():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)  # the worst that a JPEG can meet
    net = create_network("frames", resize={"mode": "none"})
    assert net.spec.outputs == {"jpeg": ((512 << 10,), "uint8")}
    small = create_network("frames", resize={"mode": "none"}, most_bytes=4096)
    out = small.run({"frames": [noise, None, noise[:20]]})["jpeg"]
    assert out.shape == (3, 4096) and not out[1].any() and out[0, 0] == out[2, 0] == 0xFF
    from torch import from_numpy
    from torchvision.io import decode_jpeg

    assert tuple(decode_jpeg(from_numpy(out[0])).shape) == (3, 60, 80)
    assert tuple(decode_jpeg(from_numpy(out[2])).shape) == (3, 20, 80)
    with pytest.raises(UserError, match="no JPEG of 1024 bytes or fewer: resize it, or allow more"):
        create_network("frames", resize={"mode": "none"}, most_bytes=1024).run({"frames": [np.tile(noise, (9, 9, 1))]})


def test_wrong_options():
    for options, message in [
        ({"quality": 101}, "quality must be from 1 to 100, or 0 for raw"),
        ({"quality": 0, "resize": {"mode": "none"}}, "frames of one size"),
        ({"quality": 0, "most_bytes": 5000}, "most_bytes is of JPEGs"),
        ({"most_bytes": 10}, "most_bytes must be at least 1024"),
    ]:
        with pytest.raises(UserError, match=message):
            network_spec("frames", **options)
