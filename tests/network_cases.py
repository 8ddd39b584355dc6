"""Every registry entry with options small enough for two cores, inputs for it, and golden vectors."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from drawn import faces_frame, words_frame

SMALL_CLIP = {"clip_len": 16, "resize": {"mode": "squash", "size": 64}}
TINY_CTC = Path(__file__).parent / "tiny_ctc"  # a recogniser's configuration and tokenizer, for random weights
CASES = {  # "NAME" or "NAME+variant": options
    "bert": {"layers": 1, "max_tokens": 8},
    "efficientnet_lite0": {"resize": {"mode": "squash", "size": 96}},
    "efficientnet_lite0+boxes": {"boxes": True, "resize": {"mode": "squash", "size": 96}},
    "face": {"top": 2},
    "faster_rcnn_r50_fpn": {"resize": {"mode": "detector", "size": 96}, "proposals": 100},
    "faster_rcnn_r50_fpn+detectron2": {
        "layout": "detectron2",
        "resize": {"mode": "detector", "size": 96},
        "proposals": 100,
    },
    "faster_rcnn_lite0_fpn": {"resize": {"mode": "detector", "size": 96}, "proposals": 100},
    "faster_rcnn_x101_fpn": {"resize": {"mode": "detector", "size": 96}, "proposals": 100},
    "flow_images": SMALL_CLIP,
    "frames": {"resize": {"mode": "squash", "size": 96}},
    "i3d_flow": SMALL_CLIP,
    "i3d_rgb": SMALL_CLIP,
    "minilm": {"layers": 2, "normalise": False, "max_tokens": 12},
    "null": SMALL_CLIP,
    "ocr": {"max_words": 4, "text_options": {"layers": 2, "normalise": False}},
    "r2plus1d34": {"clip_len": 8, "resize": {"mode": "squash", "size": 48}},
    "r3d50": SMALL_CLIP,
    "r3d50_flow": SMALL_CLIP,
    "s3d": SMALL_CLIP,
    "slow_r50": {"clip_len": 4, "resize": {"mode": "squash", "size": 64}},
    "small3d": SMALL_CLIP,
    "speech": {"model": str(TINY_CTC), "text_options": {"layers": 2, "normalise": False}},
    "tiny3d": {},
    **{name: {"resize": {"mode": "squash", "size": 96}} for name in ("resnet50", "shufflenet_v2", "tsn_resnet50")},
    **{name: {"resize": {"mode": "squash", "size": 64}} for name in ("resnet101", "resnet152", "densenet161")},
    **{name: {"resize": {"mode": "squash", "size": 64}} for name in ("tsn_resnet101", "tsn_resnet152")},
    "resnet50+boxes": {"boxes": True, "resize": {"mode": "squash", "size": 96}},
    "swin3d_t": {"clip_len": 8, "resize": {"mode": "squash", "size": 96}},
    "swin3d_t_flow": {"clip_len": 5, "resize": {"mode": "squash", "size": 70}},
    "swin3d_t_audio": {"size": 96},
    "vggish": {},
}
WEIGHTS = {"face": None}  # networks that take no random ones: their own, from a package; every other case: "random:0"
DRAWN = {"face": faces_frame, "ocr": words_frame}  # networks that find nothing in noise: seed -> frame
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
    if spec.name in DRAWN:
        return {"frames": [DRAWN[spec.name](seed + i) for i in range(n)]}
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
