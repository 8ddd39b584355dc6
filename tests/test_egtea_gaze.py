"""EGTEA Gaze+'s gaze: both real layouts against a plain loop over their lines, and files with what can be wrong."""

import shutil
import statistics

import numpy as np
import pytest
from test_egtea import write

from errors import UserError
from extract.datasets import load_dataset
from extract.datasets.egtea_gaze import FIXATION, SACCADE, TRUNCATED, UNKNOWN, UNTRACKED, read_gaze

LEFT = ("OP01-R03-BaconAndEggs", (3, 4, 5))  # a session and its columns of x, y and frame
BOTH = ("P06-R02-TurkeySandwich", (5, 6, 24))


def frame_of(text):
    if ":" not in text:
        return int(text) - 1
    hours, minutes, seconds, frames = (int(part) for part in text.split(":"))
    return (hours * 3600 + minutes * 60 + seconds) * 24 + frames


def plainly(path, columns):
    """{frame: (x, y, kind)} by the rules of the docstring, one frame after the other."""
    x, y, frame = columns
    samples = {}
    for line in path.read_bytes().decode().split("\r\n"):
        if line.startswith(("##", "Time")) or not line:
            continue
        fields = line.split("\t")
        point = float(fields[x]), float(fields[y])
        inside = 0 <= point[0] <= 1279 and 0 <= point[1] <= 959
        kind = {"Fixation": FIXATION, "Saccade": SACCADE}.get(fields[-1], UNKNOWN) if inside else TRUNCATED
        point = min(max(point[0], 0), 1279) / 1280, min(max(point[1], 0), 959) / 960
        samples.setdefault(frame_of(fields[frame]), []).append((kind, *point))
    result = {}
    for number, of_frame in samples.items():
        best = min(kind for kind, _, _ in of_frame)  # fixation 1, saccade 2, unknown 3, beside the picture 4
        xs, ys = zip(*((px, py) for kind, px, py in of_frame if kind == best), strict=True)
        result[number] = (statistics.fmean(xs), statistics.fmean(ys), best)
    return result


@pytest.mark.parametrize(("session", "columns"), [LEFT, BOTH])
def test_the_published_samples(shared, session, columns):
    path = shared / f"annotations/egtea/gaze_samples/{session}.head.txt"
    gaze, expected = read_gaze(path), plainly(path, columns)
    assert gaze.points.shape == (max(expected) + 1, 2) and gaze.points.dtype == np.float32
    assert gaze.kind.shape == (max(expected) + 1,) and gaze.kind.dtype == np.uint8
    for frame, (point, kind) in enumerate(zip(gaze.points.tolist(), gaze.kind.tolist(), strict=True)):
        x, y, best = expected.get(frame, (0.0, 0.0, UNTRACKED))
        assert kind == best and point == pytest.approx([x, y], abs=1e-6)
    assert np.abs(gaze.points - 0.5).max() <= 0.5
    assert {FIXATION, SACCADE, TRUNCATED} <= set(gaze.kind.tolist())
    assert (len(expected) < len(gaze.kind)) == (UNTRACKED in gaze.kind)


def test_the_two_layouts_count_frames_differently(shared):
    folder = shared / "annotations/egtea/gaze_samples"
    left, both = (read_gaze(folder / f"{session}.head.txt") for session, _ in (LEFT, BOTH))
    # the first line's frame is 1 of a count from 1, and 00:00:00:00; (478.55, -677.15) lies above the picture
    assert left.points[0].tolist() == pytest.approx([675.36 / 1280, 636.58 / 960]) and left.kind[0] == FIXATION
    assert both.points[0].tolist() == pytest.approx([478.55 / 1280, 0]) and both.kind[0] == TRUNCATED


HEAD = "## [BeGaze]\r\n## Number of Samples:\t99\r\n##\r\n"
NAMES = ["Time", "Type", "Trial", "L POR X [px]", "L POR Y [px]", "Frame", "Aux1", "L Event Info"]


def export(path, *lines, names=NAMES):
    text = "".join("\t".join(line) + "\r\n" for line in (names, *lines))
    path.write_text(HEAD + text, newline="")
    return path


def sample(x="640", y="480", frame="1", event="Fixation", kind="SMP"):
    return ["1", kind, "1", x, y, frame, "", event]


def test_a_frame_has_the_mean_of_its_fixated_samples(tmp_path):
    path = export(
        tmp_path / "a.txt",
        sample("0", "0"),
        sample("640", "480"),
        sample("1000", "900", event="Saccade"),
        sample("-5", "10", frame="3", event="Saccade"),
        sample("1279", "959", frame="3", event="Blink"),
        sample("2000", "480", frame="4"),
        sample(kind="MSG", frame="9"),
    )
    gaze = read_gaze(path)
    assert gaze.kind.tolist() == [FIXATION, UNTRACKED, UNKNOWN, TRUNCATED]
    expected = [[0.25, 0.25], [0, 0], [1279 / 1280, 959 / 960], [1279 / 1280, 0.5]]
    assert gaze.points == pytest.approx(np.array(expected), abs=1e-6)
    assert read_gaze(export(tmp_path / "b.txt")).points.shape == (0, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (sample(x="left"), r"a.txt, line 5: field 'L POR X \[px\]' is 'left': not a finite number"),
        (sample(y="nan"), r"'L POR Y \[px\]' is 'nan'"),
        (sample(frame="0"), "field 'Frame' is '0': neither a frame from 1"),
        (sample(frame="99999999999"), "field 'Frame'"),
        (sample(frame="00:00:61:00"), "field 'Frame'"),
        (sample(frame="00:00:01:24"), "HH:MM:SS:FF at 24"),
        (sample(event="Wink"), "'L Event Info' is 'Wink': must be Fixation, Saccade, Blink, -"),
        (sample()[:-2], "6 fields between tabs, but the line of names has 8"),
    ],
)
def test_mistakes_are_told(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_gaze(export(tmp_path / "a.txt", line))


def test_files_that_are_no_gaze(tmp_path):
    with pytest.raises(UserError, match="line 4: not a BeGaze export .* lacks the columns Frame$"):
        read_gaze(export(tmp_path / "a.txt", names=[name for name in NAMES if name != "Frame"]))
    (tmp_path / "b.txt").write_text(HEAD)
    with pytest.raises(UserError, match="b.txt: not a BeGaze export .* a line of names lacks"):
        read_gaze(tmp_path / "b.txt")
    with pytest.raises(UserError, match="no file"):
        read_gaze(tmp_path / "c.txt")


def test_the_dataset_finds_its_gaze(shared, tmp_path):
    root = tmp_path / "egtea"
    write(root / "annotations")
    folder = root / "gaze_data"
    folder.mkdir()
    assert load_dataset("egtea", tmp_path).facts["gaze"] == {}
    session, _ = BOTH
    shutil.copyfile(shared / f"annotations/egtea/gaze_samples/{session}.head.txt", folder / "p01-r01-pastasalad.txt")
    (folder / "P77-R01-Another.txt").touch()
    found = load_dataset("egtea", tmp_path).facts["gaze"]
    assert found == {"P01-R01-PastaSalad": "gaze_data/p01-r01-pastasalad.txt"}
    assert len(read_gaze(root / found["P01-R01-PastaSalad"]).kind) == 13 * 24 + 8
    assert load_dataset("egtea:cropped=true", tmp_path).facts["gaze"] == found
    (folder / "P01-R01-PastaSalad.txt").touch()
    with pytest.raises(UserError, match="gaze of P01-R01-PastaSalad is there twice"):
        load_dataset("egtea", tmp_path)
