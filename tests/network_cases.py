"""Every registry entry with options small enough for two cores, inputs for it, and golden vectors."""

import json
import sys

import numpy as np
import torch

SMALL_CLIP = {"clip_len": 16, "resize": {"mode": "squash", "size": 64}}
CASES = {  # "NAME" or "NAME+variant": options
    "efficientnet_lite0": {"resize": {"mode": "squash", "size": 96}},
    "efficientnet_lite0+boxes": {"boxes": True, "resize": {"mode": "squash", "size": 96}},
    "faster_rcnn_r50_fpn": {"resize": {"mode": "detector", "size": 96}, "proposals": 100},
    "i3d_flow": SMALL_CLIP,
    "i3d_rgb": SMALL_CLIP,
    "null": SMALL_CLIP,
    "tiny3d": {},
}
SENTENCES = (
    "A man cuts a potato.",
    "The soccer team walks out on the field, waving to a very large crowd of people.",
    "she opens the fridge",
    "Two dogs",
)
BOXES = np.array([[0.1, 0.1, 0.4, 0.5], [0.3, 0.2, 0.9, 0.9], [0.0, 0.0, 1.0, 1.0]], np.float32)


def natural(shape, seed):
    """uint8 values with structure at every scale, so that features differ: smooth noise plus fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(*[max(2, n // 8) for n in shape[:-1]], shape[-1]))
    for axis, n in enumerate(shape[:-1]):
        coarse = np.repeat(coarse, -(-n // coarse.shape[axis]), axis=axis).take(range(n), axis=axis)
    return np.clip(128 + 50 * coarse + 15 * rng.normal(size=shape), 0, 255).astype(np.uint8)


def inputs(spec, n, seed=0):
    """A batch of n different rows for `net.run`."""
    if spec.reads == "text":
        return {"texts": [SENTENCES[(seed + i) % len(SENTENCES)] for i in range(n)]}
    if spec.reads == "waveform":
        return {"waveforms": [waveform(spec.clip_len, spec.fps, seed + i) for i in range(n)]}
    height, width = spec.input_size or (96, 128)
    shape = (height, width, spec.channels)
    shape = (spec.clip_len, *shape) if spec.reads in ("rgb_clip", "flow") else shape
    batch = {"frames": [natural(shape, seed + i) for i in range(n)]}
    if spec.kind == "roi":
        batch["boxes"] = [BOXES[: 1 + i % 3] for i in range(n)]
    return batch


def waveform(samples, rate, seed):
    """float32 in [-1, 1]: a few tones that come and go, and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate
    tones = sum(np.sin(2 * np.pi * f * t) * (np.sin(2 * np.pi * g * t) > 0) for f, g in rng.uniform(1, 2000, (4, 2)))
    return (0.1 * tones + 0.02 * rng.normal(size=samples)).astype(np.float32)


def row_of(batch, i):
    return {name: [column[i]] for name, column in batch.items()}


def golden(shared, name, case):
    """(input, {tensor: (values, flat indices or None, std, shape)}, tolerance) of a golden file."""
    meta = json.loads((shared / "golden" / f"{name}.json").read_text())
    values = np.load(shared / "golden" / f"{name}.npz")
    record = meta["cases"][case]
    wanted = {
        tensor: (values[o["npz"]].reshape(-1), values.get(f"{o['npz']}@idx"), o["std"], tuple(o["shape"]))
        for tensor, o in record["outputs"].items()
    }
    sys.path.insert(0, str(shared / "golden"))
    try:
        import fill_weights
    finally:
        sys.path.pop(0)
    x = fill_weights.clip_input(record["input"]["key"], record["input"]["shape"])
    return torch.from_numpy(x), wanted, meta["tolerance"]
