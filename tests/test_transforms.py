"""Where frames and boxes go."""

import pytest

from extract.transforms import Placed, Resize, geometry, plan_resize


@pytest.mark.parametrize(
    "resize, size, placed",
    [
        (Resize("squash", 256), (1920, 1080), Placed(256, 256, 0, 0, 256, 256)),
        (Resize("squash", 256, crop=224), (320, 240), Placed(256, 256, 16, 16, 224, 224)),
        (Resize("short_side", 256, crop=224), (1920, 1080), Placed(455, 256, 115, 16, 224, 224)),
        (Resize("short_side", 256), (1080, 1920), Placed(256, 455, 0, 0, 256, 455)),
        (Resize("short_side", 2), (5, 4), Placed(3, 2, 0, 0, 3, 2)),  # 2.5 is rounded up
        (Resize("short_side", 256), (256, 256), Placed(256, 256, 0, 0, 256, 256)),
        (Resize("none"), (321, 241), Placed(321, 241, 0, 0, 321, 241)),
        (Resize("detector", 800, 1333), (1920, 1080), Placed(1920, 1080, 0, 0, 1920, 1080)),
    ],
)
def test_plan(resize, size, placed):
    assert plan_resize(resize, *size) == placed


def test_geometry_of_a_squashed_frame_covers_the_map():
    assert geometry(Resize("squash", 256), 1920, 1080, 8, 8) == (8, 8, 0, 0)


def test_geometry_of_a_crop():
    sx, sy, ox, oy = geometry(Resize("short_side", 256, crop=224), 512, 256, 7, 7)
    # the crop spans pixels 144 to 368 of 512: its edges are the map's edges
    assert sx * 144 / 512 + ox == pytest.approx(0)
    assert sx * 368 / 512 + ox == pytest.approx(7)
    assert sy * 16 / 256 + oy == pytest.approx(0)
    assert sy * 240 / 256 + oy == pytest.approx(7)


def test_geometry_of_a_detectors_frame():
    assert geometry(Resize("detector", 800, 1333), 1920, 1080, 25, 42) == (42, 25, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "zoom"},
        {"mode": "squash"},
        {"mode": "short_side", "size": 128, "crop": 224},
        {"mode": "none", "crop": 224},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ValueError):
        Resize(**wrong)


def test_refuses_a_frame_without_pixels():
    with pytest.raises(ValueError, match="0 x 10"):
        plan_resize(Resize("none"), 0, 10)
