"""The clock, end to end: a network that reads the burned-in counter says which frames an extraction picked."""

import shutil

import numpy as np
import pytest

from extract.datasets import load_dataset
from extract.decode import open_source
from extract.export_frames import export_frames
from extract.sampling import ClipSampling, instants
from pipelines import Extraction, extract
from stores import open_store

NETWORK = '''
import torch
from extract.datasets.toykitchen import read_counter
from extract.networks import Network, NetworkSpec

class Counter(Network):
    """`vector` (T,) = the presentation time burned into each frame, ms; -1 where there is none."""

    def compute(self, x, slots, batch):
        read = [[-1 if (ms := read_counter(frame.numpy())) is None else ms for frame in clip] for clip in x]
        return {"vector": torch.tensor(read, dtype=torch.float32)}

def counter(clip_len=16, stride=4, fps=60.0, resize=None):
    return NetworkSpec(name="counter", kind="backbone", reads="rgb_clip", outputs={"vector": ((clip_len,), "feature")},
                       builder=Counter, family="i3d", clip_len=clip_len, stride=stride, fps=fps,
                       resize=resize or {"mode": "squash", "size": 112})
'''
STEP_MS = 1000 / 60


@pytest.fixture(scope="module")
def picked(tmp_path_factory):
    """{"files", "folders"}: (rows, counters (N, 16) ms) of the clock videos' clips; and the videos themselves."""
    root = tmp_path_factory.mktemp("clock")
    (root / "counter_network.py").write_text(NETWORK)
    name = "toykitchen:train_clips=12,val_clips=1,clock_clips=4,untrimmed=0,distractors=1"
    dataset = load_dataset(name, data_root=root / "files")
    folder = root / "folders" / dataset.name
    shutil.copytree(dataset.root, folder)
    clocks = {}
    for video, path in zip(dataset.videos["name"], dataset.videos["path"], strict=True):
        clocks[video] = dataset.root / path
        export_frames(folder / path, folder / "rgb_frames" / video)
        (folder / path).unlink()
    found = {}
    for kind in ("files", "folders"):
        (report,) = extract(
            Extraction(
                dataset=name,
                data=root / kind,
                features=(root / f"features-{kind}",),
                only=True,
                keep=("vector",),
                backbone=f"py:{root}/counter_network.py:counter",
                dtype="float32",
                draws=2,
            )
        )
        assert report.complete, report.summary()
        store = open_store(report.store)
        rows = {column: np.array(store.rows[column]) for column in store.rows}
        found[kind] = rows, store.read("vector", np.arange(len(store)))
    return found, clocks, list(store.videos["name"])


def test_files_give_the_frame_on_screen_at_every_instant(picked):
    found, clocks, names = picked
    rows, counters = found["files"]
    wanted = instants(rows, ClipSampling(16, 4, 60.0))
    checked = 0
    for video, path in clocks.items():
        here = rows["video"] == names.index(video)
        if (counters[here] < 0).any():
            continue  # not a clock video
        with open_source(path) as source:
            shown, _ = source.at(wanted[here])
            times = np.array([t for t, _ in frame_times(path)])
            assert np.abs(counters[here] - 1000 * times[shown]).max() <= 1
            checked += len(shown)
    assert checked >= 3 * 4 * 3


def test_folders_give_the_same_frames_within_one_grid_step(picked):
    found, clocks, names = picked
    (rows, files), (other, folders) = found["files"], found["folders"]
    assert all(np.array_equal(rows[column], other[column]) for column in rows)
    wanted = 1000 * instants(rows, ClipSampling(16, 4, 60.0))
    for video, path in clocks.items():
        here = rows["video"] == names.index(video)
        if (files[here] < 0).any():
            continue
        assert (folders[here] >= 0).all()
        ends = np.append(np.array([t for t, _ in frame_times(path)])[1:] * 1000, np.inf)
        picked_end = ends[np.searchsorted(ends, folders[here] + 1)]  # when the frame that was picked leaves the screen
        assert (folders[here] <= wanted[here] + STEP_MS + 1).all() and (picked_end >= wanted[here] - STEP_MS - 1).all()


def frame_times(path):
    """(seconds from the first frame, pts) of every frame, by a plain decode."""
    import media

    frames = media.plain_decode(path)
    return [(float((frame.pts - frames[0][1].pts) * frame.time_base), pts) for pts, frame in frames]
