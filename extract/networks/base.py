"""The one face of every network: frames in, named arrays out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from errors import MachineError, UserError

from .spec import READS, NetworkSpec

__all__ = ["CPU_PIXELS", "PRECISIONS", "Network"]

CPU_PIXELS = 1 << 20  # pixels of one forward pass on a CPU, all frames counted

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network:
    """A frozen network with its spec. Subclasses override `compute`; backbones need not.

    For a backbone, `module` maps a normalised input (B, C, T, H, W) or (B, C, H, W) to a map of the same order;
    `net(x)` returns that map with channels last, and `run` pools it. A module may have `fuse(dtype)`, called once
    its weights are in place, to prepare faster inference weights of its own.

    Attributes:
        spec: what it reads and returns.
        weights_hash, weights_origin, lineage: filled by `extract.weights`.
        keep: names of the outputs that `run` returns, in the spec's order.
    """

    def __init__(self, spec: NetworkSpec, module: nn.Module | None = None) -> None:
        self.spec = spec
        self.module = (module if module is not None else nn.Module()).eval().requires_grad_(False)
        self.weights_hash = ""
        self.weights_origin = ""
        self.lineage: list[dict[str, Any]] = []
        self.device = torch.device("cpu")
        self.precision = "fp32"
        pooled = tuple(n for n in ("spatial", "vector") if n in spec.outputs)
        self._keep = pooled if spec.kind == "backbone" and pooled else tuple(spec.outputs)

    # -- what it returns ---------------------------------------------------------------------------------------

    @property
    def keep(self) -> tuple[str, ...]:
        return self._keep

    @keep.setter
    def keep(self, names: Iterable[str]) -> None:
        wanted = (names,) if isinstance(names, str) else tuple(names)
        missing = [n for n in wanted if n not in self.spec.outputs]
        if missing or not wanted:
            hint = (
                "" if self.spec.input_size else "; maps need a fixed input size: choose a resize with a crop, or squash"
            )
            raise UserError(
                f"{self.spec.name} cannot keep {', '.join(missing) or 'nothing'}: "
                f"it offers {', '.join(self.spec.outputs)}{hint}"
            )
        self._keep = tuple(n for n in self.spec.outputs if n in wanted)

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(H', W') of the feature map, for placing boxes on it; None where no map has a fixed size."""
        return self.spec.map_size

    # -- where and how it runs ---------------------------------------------------------------------------------

    def to(self, device: str | torch.device = "cpu", precision: str = "fp32") -> Network:
        """Move to a device and set the precision of `run`: fp32, or bf16 / fp16 by autocast. Returns itself."""
        if precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise UserError(f"device {device!r} is not one of auto, cpu, cuda, cuda:1 ...") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device {str(device)!r}: torch sees no CUDA device here; use --device cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"device {str(device)!r}: this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0"
            )
        if device.type == "cpu" and precision == "fp16":
            raise UserError("precision fp16 needs a CUDA device; on a CPU use bf16 or fp32")
        self.device, self.precision = device, precision
        self.prepare()
        return self

    def prepare(self) -> None:
        """Lay out weights for the device; called by `to` and again whenever weights were replaced."""
        layout = torch.channels_last_3d if READS[self.spec.reads][0] == "THWC" else torch.channels_last
        self.module.to(device=self.device)
        for parameter in self.module.parameters():
            if parameter.dim() == (5 if layout is torch.channels_last_3d else 4):
                parameter.data = parameter.data.contiguous(memory_format=layout)
        if hasattr(self.module, "fuse"):
            self.module.fuse(PRECISIONS[self.precision])

    @contextlib.contextmanager
    def inference(self):
        """No gradients, the chosen precision, and on CUDA deterministic kernels without TF32."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.device.type == "cuda":
                stack.enter_context(
                    torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
                )
            if self.precision != "fp32":
                stack.enter_context(torch.autocast(self.device.type, dtype=PRECISIONS[self.precision]))
            yield

    @contextlib.contextmanager
    def enough_memory(self, rows: int):
        """Turns the device's running out of memory on so many rows into a `MachineError` that says what helps."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"{self.device} ran out of memory on {rows} rows of {self.spec.name}: use a smaller --batch-size"
                " (what was committed is safe)"
            ) from error

    # -- weights -----------------------------------------------------------------------------------------------

    def load_weights(self, weights: str | None) -> None:
        """Fill the weights and record `weights_hash`, `weights_origin` and `lineage`; `weights` as for create_network.

        A network made of several, or of a library's own files, overrides it.
        """
        from .. import weights as weights_module

        weights_module.load_into(self, weights)

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published key names to the module's own; a subclass overrides it where layouts differ."""
        return state

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Last changes before loading (other class counts, heads not needed); may raise a telling UserError."""
        return state

    def check_channels(self, stem: Tensor | None) -> None:
        """Refuse a checkpoint whose first convolution reads another number of channels."""
        own = self.spec.channels
        if stem is not None and stem.dim() == 5 and stem.shape[1] != own:
            is_a = {2: "a flow", 3: "an RGB"}.get(stem.shape[1], f"a {stem.shape[1]}-channel")
            raise UserError(
                f"this is {is_a} checkpoint (its first convolution reads {stem.shape[1]} channels); "
                f"{self.spec.name} reads {own}"
            )

    def check_classes(self, bias: Tensor | None, wanted: int) -> None:
        """Refuse a checkpoint whose classifier (its bias, None where it has none) has another number of outputs."""
        if bias is not None and len(bias) != wanted:
            raise UserError(
                f"the checkpoint has {len(bias)} classes, {self.spec.name} was asked for {wanted}: "
                f"pass classes={len(bias)}"
            )

    def load_published(self, path: str) -> Network:
        """Load a checkpoint of the reference implementation (.pt, .pth, .safetensors). Returns itself.

        Raises:
            UserError: unreadable, or of another architecture (the first missing and unexpected keys are named).
        """
        self.load_weights(str(path))
        self.prepare()
        return self

    # -- running -----------------------------------------------------------------------------------------------

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised float32 (B, C, T, H, W) -> (B, T', H', W', C'); images (B, C, H, W) -> (B, H', W', C')."""
        with self.inference():
            return self.feature_map(x.to(self.device))

    def feature_map(self, x: Tensor) -> Tensor:
        return self.module(x).float().movedim(1, -1)

    def run(self, batch: dict[str, list]) -> dict[str, np.ndarray]:
        """One forward pass over a batch; row i of every output belongs to its row i.

        Args:
            batch: "frames": B uint8 arrays, (T, H, W, C) clips or (H, W, C) frames; or "waveforms": B float32 arrays
                (clip_len,) in [-1, 1]; or "texts": B strings. None for a row that failed: it keeps its slot,
                zero-filled, and returns zeros. Roi networks also read "boxes": B float32 arrays
                (n, 4), XYXY relative to the frame, or None. "sizes" (optional): B pairs (width, height) of the
                frames as they were before the decoder resized them; boxes come out in those pixels.

        Returns:
            {name: (B, *row shape)} for the names in `keep`: float32, or the dtype that the spec states.
        """
        rows = self.rows_of(batch)
        out = self.blank(len(rows))
        for slots, stacked in self._groups(rows):
            with self.inference(), self.enough_memory(len(slots)):
                values = self.compute(self._upload(stacked), slots, batch)
                values = {name: v.to("cpu").numpy() for name, v in values.items() if name in out}
            for row, slot in enumerate(slots):
                if rows[slot] is not None:
                    for name, value in values.items():
                        out[name][slot] = value[row]
        return out

    def rows_of(self, batch: dict[str, list]) -> list:
        """The rows of a batch: its frames, waveforms or texts, as `spec.reads` says; None where a row failed."""
        return batch[READS[self.spec.reads][3]]

    def blank(self, n: int) -> dict[str, np.ndarray]:
        """Zeros for n rows of every output in `keep`: float32, or the dtype that the spec states."""
        return {
            name: np.zeros((n, *shape), np.float32 if dtype == "feature" else dtype)
            for name, (shape, dtype) in self.spec.outputs.items()
            if name in self._keep
        }

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        """Rows of one shape on the device -> outputs, row by row as in `slots`; pooling is in float32."""
        parts = [self._pool(self.feature_map(self.normalise(part))) for part in x.split(self._rows_at_once(x))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _pool(self, feature_map: Tensor) -> dict[str, Tensor]:
        values = {}
        if "map" in self._keep:
            values["map"] = feature_map
        if "spatial" in self._keep:
            values["spatial"] = feature_map.mean(1) if feature_map.dim() == 5 else feature_map
        if "vector" in self._keep:
            values["vector"] = feature_map.flatten(1, -2).mean(1)
        return values

    def _rows_at_once(self, x: Tensor) -> int:
        """On a CPU large clips go through one by one: a batch of them falls out of its caches and gains nothing.

        While gradients are on all go through at once: batch norms want the statistics of the whole batch.
        """
        if torch.is_grad_enabled():
            return len(x)
        return len(x) if self.device.type != "cpu" else max(1, CPU_PIXELS * x.shape[-1] // x[0].numel())

    def normalise(self, x: Tensor) -> Tensor:
        """uint8 (B, ..., C) on the device -> float32 (B, C, ...), (x / 255 - mean) / std, channels last in memory."""
        mean = torch.tensor(self.spec.mean or (0.0,), dtype=torch.float64)
        std = torch.tensor(self.spec.std or (1.0,), dtype=torch.float64)
        scale = (1.0 / (255.0 * std)).float().to(x.device)
        shift = (-mean / std).float().to(x.device)
        x = torch.addcmul(shift, x.float(), scale)
        if self.spec.value_clip is not None:
            x = x.clamp_(-self.spec.value_clip, self.spec.value_clip)
        return x.movedim(-1, 1)

    def _upload(self, stacked: np.ndarray) -> Tensor:
        x = torch.from_numpy(stacked)
        if self.device.type == "cuda":
            return x.pin_memory().to(self.device, non_blocking=True)
        return x.to(self.device)

    def _groups(self, frames: list[np.ndarray | None]) -> Iterable[tuple[list[int], np.ndarray]]:
        """(slots, stacked inputs) per shape: images of different sizes are never padded to one another.

        A failed row joins the row before it (or the first that did not fail) as zeros, so that the others are
        computed in the same batch shape whether it failed or not.
        """
        shape_of: list[tuple[int, ...] | None] = []
        for slot, frame in enumerate(frames):
            if frame is not None:
                self._check(slot, frame)
            shape_of.append(shape_of[-1] if frame is None and shape_of else getattr(frame, "shape", None))
        first = next((s for s in shape_of if s is not None), None)
        groups: dict[tuple[int, ...], list[int]] = {}
        for slot, shape in enumerate(shape_of):
            if first is not None:
                groups.setdefault(shape or first, []).append(slot)
        for shape, slots in groups.items():
            stacked = np.zeros((len(slots), *shape), READS[self.spec.reads][2])
            for row, slot in enumerate(slots):
                if frames[slot] is not None:
                    stacked[row] = frames[slot]
            yield slots, stacked

    def _check(self, slot: int, frame: np.ndarray) -> None:
        spec = self.spec
        axes, _, dtype, key = READS[spec.reads]
        size = spec.input_size
        want = {
            "T": spec.clip_len,
            "N": spec.clip_len,
            "C": spec.channels,
            "H": size and size[0],
            "W": size and size[1],
        }
        good = frame.dtype == dtype and frame.ndim == len(axes)
        if not good or any(want.get(a) not in (None, n) for a, n in zip(axes, frame.shape, strict=True)):
            expected = ", ".join(str(want.get(a) or a) for a in axes)
            raise ValueError(
                f"{spec.name}: {key}[{slot}] must be {dtype} ({expected}), got {frame.dtype} {tuple(frame.shape)}"
            )
