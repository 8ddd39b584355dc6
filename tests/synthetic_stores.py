"""Small stores in the shapes of the real ones, whose features say what the labels are: for tests of stage two.

Clip k of a video lies at [10 k + 2, 10 k + 5) s. The verb feature holds the verb's code; the noun feature is noise,
so the noun can only be had from one box of each frame (the one whose feature starts with a large value).
"""

from pathlib import Path

import numpy as np

from stores import ArraySpec, Layout, Manifest, create_store, plan_layout

C, C1, K, MAP, VERBS, NOUNS = 16, 12, 6, (4, 5), 3, 4
FRAME = (640, 480)
PER_VIDEO = 10
CLIP_ARRAYS = {"spatial": ArraySpec((*MAP, C), "float16"), "vector": ArraySpec((C,), "float16")}
OBJECT_ARRAYS = {
    "roi": ArraySpec((K, C1), "float16"),
    "boxes": ArraySpec((K, 4), "float32"),
    "scores": ArraySpec((K,), "float32"),
    "n_boxes": ArraySpec((), "int32"),
}


def clips_table(videos: int) -> dict:
    n = videos * PER_VIDEO
    index = np.arange(n)
    rng = np.random.default_rng(5)
    start = 2.0 + 10 * (index % PER_VIDEO)
    return {
        "id": np.array([f"clip{i}" for i in index], object),
        "video": (index // PER_VIDEO).astype(np.int32),
        "start_s": start,
        "stop_s": start + 3,
        "verb": rng.integers(0, VERBS, n).astype(np.int32),
        "noun": rng.integers(0, NOUNS, n).astype(np.int32),
        "split": np.array(["val" if i // PER_VIDEO >= videos * 3 // 4 else "train" for i in index], object),
    }


def videos_table(videos: int) -> dict:
    names = [f"V{i:02d}" for i in range(videos)]
    return {"name": np.array(names, object), "path": np.array([f"{n}.mp4" for n in names], object)}


def codes(n: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (n, width)) > 0.5


def _fill(store, arrays: dict, status: np.ndarray, pending=()):
    for unit in store.units:
        rows = slice(unit.start, unit.stop)
        state = status[rows].copy()
        state[np.isin(np.arange(unit.start, unit.stop), list(pending))] = 0
        failures = {unit.start + int(i): ("damaged", "made to fail") for i in np.flatnonzero(state == 2)}
        store.commit(unit, {name: values[rows] for name, values in arrays.items()}, state, failures)
    return store


def clip_store(
    folder: Path, name="i3d_rgb", *, videos=4, draws=2, failed=(), pending=(), shift_s=0.0, seed=0, clips=None,
    lineage=(), dataset="toy", arrays=CLIP_ARRAYS, weights="abc", file=None, frames=None,
):  # fmt: skip
    """A clip store; `draws` random draws a training clip beside draw 0; `failed`/`pending`: row indices;
    `file`: its name, where that is not the network's; `frames`: how it says that its rows were chosen."""
    clips = clips or clips_table(videos)
    table = []
    for i, split in enumerate(clips["split"]):
        for draw in range(1 + (draws if split == "train" else 0)):
            centre = clips["start_s"][i] + 1.5 + (0 if draw == 0 else 0.3 * (draw - 1.5))
            table.append((clips["video"][i], i, 0, draw, centre - 1 + shift_s, centre + 1 + shift_s))
    video, clip, k, draw, start, stop = (np.array(x) for x in zip(*table, strict=True))
    rows = {"video": video.astype(np.int32), "clip": clip.astype(np.int32), "k": k.astype(np.int32)}
    rows |= {"draw": draw.astype(np.int16), "start_s": start, "stop_s": stop}
    manifest = Manifest(
        arrays=arrays,
        layout=plan_layout(arrays, 8, batch_size=4),
        recipe={"network": {"name": name}, "weights": weights},
        spec={"name": "i3d_rgb", "family": "i3d"},
        dataset={"name": dataset, "classes": {"verb": VERBS, "noun": NOUNS}} | ({"frames": frames} if frames else {}),
        lineage=list(lineage),
    )
    store = create_store(folder / f"{file or name}.zarr", manifest, rows, clips, videos_table(videos))
    rng = np.random.default_rng(seed)
    spatial = rng.uniform(0, 0.3, (len(clip), *MAP, C)) + codes(VERBS, C, 1)[clips["verb"][clip]][:, None, None]
    spatial = spatial.astype(np.float16)
    for i in range(videos):
        geometry = [MAP[1] * (1 + 0.1 * i), MAP[0], -0.25 * i, 0.0]
        store.write_probe(f"V{i:02d}", {"fps": 30.0, "width": 320, "height": 240, "geometry": geometry})
    values = {"spatial": spatial, "vector": spatial.mean((1, 2), dtype=np.float32).astype(np.float16)}
    status = np.ones(len(clip), np.uint8)
    status[list(failed)] = 2
    return _fill(store, {name: values[name] for name in arrays}, status, pending)


def object_store(
    folder: Path, name="faster_rcnn", *, videos=4, fps=2.0, failed=(), pending=(), clips=None, lineage=(), dataset="toy"
):
    """A frame store: row of video v at k / fps; box `v % 3` of each frame shows the noun of the clip at hand."""
    clips = clips or clips_table(videos)
    frames = int(PER_VIDEO * 10 * fps)
    video = np.repeat(np.arange(videos), frames)
    k = np.tile(np.arange(frames), videos)
    rows = {"video": video.astype(np.int32), "clip": np.full(len(k), -1, np.int32), "k": k.astype(np.int32)}
    rows |= {"draw": np.zeros(len(k), np.int16), "start_s": k / fps, "stop_s": k / fps}
    manifest = Manifest(
        arrays=OBJECT_ARRAYS,
        layout=Layout(32, 4, {"roi": 16, "boxes": 32, "scores": 32, "n_boxes": 32}),
        recipe={"network": {"name": name}},
        spec={"name": "faster_rcnn_r50_fpn", "family": "detector"},
        dataset={"name": dataset},
        lineage=list(lineage),
    )
    store = create_store(folder / f"{name}.zarr", manifest, rows, clips, videos_table(videos))
    rng = np.random.default_rng(9)
    at = np.clip(video * PER_VIDEO + (k / fps // 10).astype(int), 0, len(clips["id"]) - 1)
    roi = rng.uniform(0, 0.2, (len(k), K, C1)) + codes(NOUNS, C1, 2)[rng.integers(0, NOUNS, (len(k), K))]
    roi[..., 0] = 0.1
    hand = video % 3
    roi[np.arange(len(k)), hand] = codes(NOUNS, C1, 2)[clips["noun"][at]]
    roi[np.arange(len(k)), hand, 0] = 3
    low = rng.uniform(0, 0.5, (len(k), K, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, (len(k), K, 2))], -1) * [*FRAME, *FRAME]
    n = rng.integers(3, K + 3, len(k))  # sometimes more than fit
    empty = np.arange(K) >= n[:, None]
    roi[empty], boxes[empty] = 0, 0
    scores = np.sort(rng.uniform(0.01, 1, (len(k), K)))[:, ::-1] * ~empty
    for i in range(videos):
        store.write_probe(f"V{i:02d}", {"fps": 30.0, "width": FRAME[0], "height": FRAME[1]})
    status = np.ones(len(k), np.uint8)
    status[list(failed)] = 2
    values = {"roi": roi, "boxes": boxes, "scores": scores, "n_boxes": n.astype(np.int32)}
    return _fill(store, values, status, pending)


def all_stores(folder: Path, **options) -> dict:
    """One clip store for verbs and nouns, and the objects."""
    clips = clip_store(folder, **options)
    return {"verb": clips, "noun": clips, "objects": object_store(folder, videos=options.get("videos", 4))}
