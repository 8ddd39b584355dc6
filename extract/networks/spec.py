"""What a network reads and returns, known before the first frame and without importing torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from errors import UserError

__all__ = ["KINDS", "READS", "RESIZE_MODES", "NetworkSpec", "box_outputs", "clip_input_size", "resize_dict"]

KINDS = ("backbone", "detector", "roi", "text", "track")
READS = {  # what one row is made of -> (axes of one input, channels, dtype of its values, key of `run`'s batch)
    "rgb_clip": ("THWC", 3, "uint8", "frames"),
    "rgb_frame": ("HWC", 3, "uint8", "frames"),
    "flow": ("THWC", 2, "uint8", "frames"),
    "waveform": ("N", 1, "float32", "waveforms"),
    "text": ("", 0, "str", "texts"),
}
RESIZE_MODES = ("squash", "short_side", "detector", "none")

# Fields that say where values come from; the others only steer how, or describe, and are no part of a recipe.
_RECIPE = (
    "name", "kind", "reads", "layer", "options", "random_scale", "code_hash",
    "clip_len", "stride", "fps", "resize", "mean", "std", "value_clip",
)  # fmt: skip


@dataclass(frozen=True)
class NetworkSpec:
    """One network with its options fixed: the whole contract between a network, the planner and the store.

    `outputs` maps an array's name to (row shape, dtype); dtype "feature" means the store's own feature dtype
    (float16 or float32), otherwise a numpy dtype string. Only outputs whose row shape is the same for every
    video are listed: a backbone fed without a fixed input size offers `vector` alone.
    """

    # identity
    name: str  # registry name; for the lab's own code "py:FILE:FACTORY", for a library's model "LIBRARY:NAME"
    kind: str  # backbone | detector | roi | text | track
    reads: str  # rgb_clip | rgb_frame | flow | waveform | text
    outputs: dict[str, tuple[tuple[int, ...], str]]
    builder: str | Callable[[NetworkSpec], Any] = ""  # "module:attribute" (imported when built) or a callable
    family: str = ""  # key of the sampling presets: "i3d", "r3d50", "detector", ...
    layer: str = ""  # where the network is cut
    options: dict[str, Any] = field(default_factory=dict)  # further choices that change values (JSON)

    # one row's input
    clip_len: int = 1  # frames of a row (1 on the frame axis); samples of a waveform
    stride: int = 1  # grid steps between two of its frames
    fps: float = 25.0  # the grid's rate, frames a second; of a waveform, samples a second
    hop: int = 0  # segment axis: grid steps from one window to the next; 0 = clip_len * stride
    resize: dict[str, Any] = field(default_factory=lambda: {"mode": "none"})  # extract.transforms.Resize(**resize)
    mean: tuple[float, ...] = ()  # per channel, of values scaled to [0, 1]
    std: tuple[float, ...] = ()
    value_clip: float | None = None  # normalised values are clamped to +- this (flow)

    # running it
    unit_rows: int = 64  # rows of one unit: a constant of the network, never a measured speed
    batch_size: int = 4  # rows of one forward pass

    # weights
    weights: str = ""  # default entry of extract.weights.TABLE; "" = the network has no weights
    random_scale: tuple[tuple[str, float], ...] = ()  # (key pattern, factor) applied by random:SEED

    # origin
    licence: str = ""  # of the weights
    source: str = ""  # paper, and the implementation whose checkpoints load
    requires: tuple[str, ...] = ()  # importable packages beyond the base installation, e.g. "transformers"
    code_hash: str = ""  # sha256 of the lab's own file (py:)

    def __post_init__(self) -> None:
        def wrong(what: str) -> UserError:
            return UserError(f"network {self.name!r}: {what}")

        if self.kind not in KINDS:
            raise wrong(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.reads not in READS:
            raise wrong(f"reads must be one of {', '.join(READS)}, not {self.reads!r}")
        if not self.outputs:
            raise wrong("outputs is empty: name at least one array and its row shape")
        for array, (shape, dtype) in self.outputs.items():
            if any(not isinstance(n, int) or n < 1 for n in shape):
                raise wrong(f"output {array!r}: row shape must be positive integers, got {shape} ({dtype})")
        for key in ("clip_len", "stride", "unit_rows", "batch_size"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise wrong(f"{key} must be a positive integer, got {value!r}")
        if not isinstance(self.hop, int) or self.hop < 0:
            raise wrong(f"hop must be a whole number of grid steps, got {self.hop!r}")
        if not self.fps > 0:
            raise wrong(f"fps must be positive, got {self.fps!r}")
        if self.resize.get("mode") not in RESIZE_MODES:
            raise wrong(f"resize mode must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}")
        channels = READS[self.reads][1]
        if {len(self.mean), len(self.std)} - {0, channels}:
            raise wrong(f"mean and std need {channels} values, got {self.mean} and {self.std}")
        if any(not s > 0 for s in self.std):
            raise wrong(f"std must be positive, got {self.std}")

    @property
    def duration_ms(self) -> float:
        """Milliseconds that one row spans: clip_len * stride steps of the grid (0 for a single frame)."""
        return 0.0 if self.clip_len == 1 else 1000.0 * self.clip_len * self.stride / self.fps

    @property
    def channels(self) -> int:
        """Channels of the input: 3 for RGB, 2 for flow (u then v)."""
        return READS[self.reads][1]

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) of every frame the network is given, or None where it depends on the video."""
        return clip_input_size(self.resize)

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(H', W') of the feature map, for placing boxes on it; None where no map has a fixed size."""
        shape = next((self.outputs[name][0] for name in ("spatial", "map") if name in self.outputs), None)
        return None if shape is None else shape[-3:-1]

    def recipe(self) -> dict[str, Any]:
        """The part of a store's recipe that the network decides, as plain JSON (without the weights' hash)."""
        return {key: _plain(getattr(self, key)) for key in _RECIPE}

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON; the builder only if it is an import path."""
        record = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        if callable(self.builder):
            record["builder"] = ""
        return record

    def build(self) -> Any:
        """The network itself, still without weights. Imports torch."""
        builder = self.builder
        if isinstance(builder, str):
            module, _, attribute = builder.partition(":")
            builder = getattr(importlib.import_module(module), attribute)
        return builder(self)


def clip_input_size(resize: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) after a Resize given as a dict, None where it depends on the source."""
    if resize.get("crop"):
        return int(resize["crop"]), int(resize["crop"])
    if resize.get("mode") == "squash":
        return int(resize["size"]), int(resize["size"])
    return None


def box_outputs(boxes: int, channels: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Outputs of every network that describes boxes: at most `boxes` of them, in order, and their true number."""
    return {
        "roi": ((boxes, channels), "feature"),
        "boxes": ((boxes, 4), "float32"),  # XYXY in pixels of the frame read
        "scores": ((boxes,), "float32"),
        "classes": ((boxes,), "int32"),
        "n_boxes": ((), "int32"),
    }


def resize_dict(resize: dict[str, Any] | None, default: dict[str, Any]) -> dict[str, Any]:
    """A complete, checked Resize as a dict; `resize` replaces the default altogether when given."""
    chosen = {key: value for key, value in (default if resize is None else resize).items() if value is not None}
    mode = chosen.get("mode")
    sizes = {key: value for key, value in chosen.items() if key != "mode"}
    unknown = set(sizes) - {"size", "max_size", "crop"}
    if unknown or mode not in RESIZE_MODES:
        raise UserError(
            f"resize={chosen!r}: expected mode ({', '.join(RESIZE_MODES)}) with size, max_size (detector), crop; "
            'for example {"mode": "short_side", "size": 256, "crop": 224}'
        )
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes.values()):
        raise UserError(f"resize={chosen!r}: size, max_size and crop are whole numbers of pixels, at least 1")
    if mode != "none" and "size" not in sizes:
        raise UserError(f"resize={chosen!r}: mode {mode!r} needs a size in pixels")
    if "crop" in sizes and (mode not in ("squash", "short_side") or sizes["crop"] > sizes["size"]):
        raise UserError(f"resize={chosen!r}: a crop needs mode squash or short_side and a size that holds it")
    return chosen


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
