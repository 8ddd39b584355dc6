"""Optical flow computed from frames, in the 8 bits that flow networks read.

TV-L1 is what I3D was trained on (Carreira and Zisserman 2017, arXiv:1705.07750, section 3): the displacement between
frames 1/25 s apart, clipped to +-20 pixels. DIS is some 80 times as fast on a CPU, RAFT is meant for CUDA. Importing
this module needs neither OpenCV nor torch.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from errors import UserError

from .weights import TABLE, Weights, add_weights, file_hash, resolve

__all__ = [
    "BOUND",
    "FLOW_RULE",
    "FLOW_STEP_S",
    "METHODS",
    "FlowMethod",
    "PairCache",
    "compute_flow_clip",
    "create_flow",
    "flow_recipe",
    "quantise",
]

FLOW_RULE = 1
"""Number of the way flow is computed from a pair of frames and stored; raised only when its values change."""

METHODS = ("tvl1", "dis", "raft")
FLOW_STEP_S = 0.04
"""Seconds between the two frames of a pair: I3D's training rate of 25 frames a second."""

BOUND = 20.0
"""Pixels of displacement that the ends of the 8-bit range stand for."""

PARAMETERS: dict[str, dict[str, Any]] = {
    "tvl1": {  # OpenCV's defaults, in the order in which it takes them
        "tau": 0.25,
        "lambda": 0.15,
        "theta": 0.3,
        "scales": 5,
        "warps": 5,
        "epsilon": 0.01,
        "inner_iterations": 30,
        "outer_iterations": 10,
        "scale_step": 0.8,
        "gamma": 0.0,
        "median_filtering": 5,
    },
    "dis": {"preset": "medium"},
    "raft": {"updates": 12},  # recurrent steps: torchvision's default, with which its training ran
}

_ZERO = 128  # quantise(0): the network reads +0.0039, as from I3D's own 8-bit files

RAFT_WEIGHTS = "raft_large.sintel"
add_weights(
    Weights(
        name=RAFT_WEIGHTS,
        architecture="raft_large",
        filename="raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        url="https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        hash="sha256:ff5fadd56d26b40647388883af1547351ea17868b765c05b27231e72dd16a322",
        licence="BSD-3-Clause",
        trained_on=(
            {"dataset": "sintel+kitti2015+hd1k+flyingthings3d", "split": "train", "classes": 0},
            {"dataset": "flyingchairs+flyingthings3d", "split": "train", "classes": 0},
        ),
        accuracy={"sintel test clean end-point error": 1.819, "sintel test final end-point error": 3.067},
    ),
)


# -- methods -------------------------------------------------------------------------------------------------------


class FlowMethod(ABC):
    """One way to compute optical flow. Safe to share between threads; the same result in any of them.

    Attributes:
        name: one of METHODS.
        pairs_at_once: how many pairs `batch` is best given.
    """

    name = ""
    pairs_at_once = 1

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Displacement of every pixel of `first` towards `second`.

        Args:
            first, second: uint8 (h, w, 3) RGB of one size.

        Returns:
            float32 (h, w, 2) in pixels: u (right is positive), then v (down is positive).

        Raises:
            ValueError: other shapes or dtypes.
        """
        return self.batch(np.asarray(first)[None], np.asarray(second)[None])[0]

    def batch(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """`__call__` for n pairs at once: uint8 (n, h, w, 3) twice -> float32 (n, h, w, 2)."""
        for frames in (first, second):
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or frames.shape != first.shape:
                raise ValueError(
                    f"flow needs pairs of uint8 (h, w, 3) frames of one size, got {first.dtype} {first.shape[1:]} and "
                    f"{second.dtype} {second.shape[1:]}"
                )
        if not len(first):
            return np.zeros((*first.shape[:3], 2), np.float32)
        return self.compute(first, second)

    @abstractmethod
    def compute(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """What a method is: as `batch`, of checked frames, one pair at least."""


class _OpenCV(FlowMethod):
    """A method of OpenCV on grey images. Its results are the same for any number of OpenCV's own threads."""

    min_size = 1

    def __init__(self) -> None:
        self.cv2 = _opencv(self.name)
        self._local = threading.local()  # a cv2 object keeps buffers between calls: one a thread

    @abstractmethod
    def make(self) -> Any:
        """OpenCV's object with `calc`."""

    def compute(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if not hasattr(self._local, "method"):
            self._local.method = self.make()
        h, w = first.shape[1:3]
        pad = [(0, max(0, self.min_size - n)) for n in (h, w)]
        flow = np.empty((*first.shape[:3], 2), np.float32)
        for i, pair in enumerate(zip(first, second, strict=True)):
            grey = [self.cv2.cvtColor(np.ascontiguousarray(frame), self.cv2.COLOR_RGB2GRAY) for frame in pair]
            if any(after for _, after in pad):
                grey = [np.pad(image, pad, mode="edge") for image in grey]
            flow[i] = self._local.method.calc(*grey, None)[:h, :w]
        return flow


class TVL1(_OpenCV):
    """Dual TV-L1 (Zach, Pock and Bischof 2007), OpenCV contrib with the parameters of the published Kinetics flow."""

    name = "tvl1"

    def make(self) -> Any:
        return self.cv2.optflow.DualTVL1OpticalFlow_create(*PARAMETERS[self.name].values())


class DIS(_OpenCV):
    """Dense inverse search (Kroeger et al. 2016, arXiv:1603.03590), OpenCV's preset "medium".

    Patches of 8 pixels every 3, 25 gradient steps, variational refinement of 5 iterations, from the coarsest scale
    to half the resolution, whose flow is enlarged. Frames smaller than 16 pixels are padded by their edges.
    """

    name = "dis"
    min_size = 16

    def make(self) -> Any:
        return self.cv2.DISOpticalFlow_create(self.cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


def create_flow(name: str, device: str = "cpu", weights: str | None = None) -> FlowMethod:
    """A flow method ready to run.

    Args:
        name: one of METHODS.
        device: for raft, "cpu" or "cuda:0"; the others run on the CPU whatever it says.
        weights: for raft, as for `create_network`: None for the published ones, a path, or "random:SEED".

    Raises:
        UserError: unknown name; OpenCV, or its contrib modules, are not installed; weights that cannot be found.
    """
    if name not in METHODS:
        raise UserError(f"flow must be one of {', '.join(METHODS)}, got {name!r}")
    if name == "raft":
        from .raft import Raft

        return Raft(device, weights)
    if weights is not None:
        raise UserError(f"flow {name} has no weights, got {weights!r}: only raft takes them")
    return {"tvl1": TVL1, "dis": DIS}[name]()


def flow_recipe(name: str, weights: str | None = None) -> dict[str, Any]:
    """What decides the 8-bit flow of a pair of frames, for a store's recipe: plain JSON, without loading a network.

    Args and raises: as for `create_flow`.
    """
    if name not in METHODS:
        raise UserError(f"flow must be one of {', '.join(METHODS)}, got {name!r}")
    library = "torchvision" if name == "raft" else "opencv"
    version = metadata.version(library) if name == "raft" else _opencv(name).__version__
    return {
        "method": name,
        "rule": FLOW_RULE,
        "step_s": FLOW_STEP_S,
        "bound": BOUND,
        "parameters": PARAMETERS[name] | ({"weights": _weights_hash(weights)} if name == "raft" else {}),
        "library": {library: ".".join(version.split(".")[:2])},
    }


def _weights_hash(weights: str | None) -> str:
    """The hash of RAFT's weights; of random ones, their name."""
    if weights and weights.startswith("random:"):
        return weights
    found = resolve("raft_large", RAFT_WEIGHTS, weights, download=False, missing_ok=True)
    if found is None:  # still to be downloaded, or refused when they are loaded
        return TABLE[RAFT_WEIGHTS].hash
    return found.entry.hash if found.entry else file_hash(found.path)


def _opencv(method: str) -> ModuleType:
    """cv2, for TV-L1 with its contrib modules.

    opencv-python and opencv-contrib-python (headless or not) install into the same folder, and the one that is
    installed last wins: the folder cv2/optflow can then be there without the functions in it.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"computing flow needs OpenCV ({error}): pip install 'clipbank[flow]'") from error
    if method == "tvl1" and not hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create"):
        raise UserError(
            f"flow tvl1: OpenCV {cv2.__version__} is installed without its contrib modules (another package's"
            " opencv-python lies over them, or they were never installed):"
            " pip install --force-reinstall --no-deps opencv-contrib-python-headless"
        )
    return cv2


# -- 8 bits --------------------------------------------------------------------------------------------------------


def quantise(flow: np.ndarray, bound: float = BOUND) -> np.ndarray:
    """float (..., 2) pixels -> uint8: round((clip(flow, -bound, bound) / bound + 1) / 2 * 255).

    A network with flow_bound=bound and flow_scale=1 reads q back as (q / 255 * 2 - 1) * bound: within bound / 255 of
    the displacement, zero motion (128) as +0.0039 * bound.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    flow = np.asarray(flow, np.float32)
    if not np.isfinite(flow).all():
        raise ValueError("flow holds values that are not finite")
    scaled = (np.clip(flow, -bound, bound) / np.float32(bound) + np.float32(1)) * np.float32(127.5)
    return np.floor(scaled + np.float32(0.5)).astype(np.uint8)


# -- clips ---------------------------------------------------------------------------------------------------------


def compute_flow_clip(method: FlowMethod, frames: np.ndarray) -> np.ndarray:
    """The 8-bit flow of a clip.

    Args:
        frames: uint8 (2T, h, w, 3) RGB, already resized and cropped: flow t is from frame 2t to frame 2t + 1.

    Returns:
        uint8 (T, h, w, 2), u then v, in pixels of these frames. A pair of equal frames is no motion, without
        computing it.
    """
    if len(frames) % 2:
        raise ValueError(f"flow needs pairs of frames, got {len(frames)}")
    first, second = frames[::2], frames[1::2]
    flow = np.full((*first.shape[:3], 2), _ZERO, np.uint8)
    moving = [t for t in range(len(first)) if not np.array_equal(first[t], second[t])]
    for start in range(0, len(moving), method.pairs_at_once):
        some = moving[start : start + method.pairs_at_once]
        flow[some] = quantise(method.batch(first[some], second[some]))
    return flow


class PairCache:
    """The flow of one video's clips, each pair of frames computed once while clips overlap. For one thread.

    keep: pairs remembered, the ones used last; a pair of 224 x 224 takes 98 KiB.
    """

    def __init__(self, method: FlowMethod, keep: int = 256) -> None:
        self.method = method
        self.keep = keep
        self._flow: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def clip(self, indices: Sequence[int] | np.ndarray, frames: np.ndarray) -> np.ndarray:
        """`compute_flow_clip` of frames whose numbers in the video are `indices` (2T,), in the same crop always."""
        if len(indices) != len(frames):
            raise ValueError(f"{len(indices)} indices for {len(frames)} frames")
        keys = [(int(a), int(b)) for a, b in zip(indices[::2], indices[1::2], strict=True)]
        new = list({key: t for t, key in enumerate(keys) if key not in self._flow}.values())
        both = [i for t in new for i in (2 * t, 2 * t + 1)]
        known = {key: self._flow[key] for key in keys if key in self._flow}
        if new:
            computed = compute_flow_clip(self.method, frames[both])
            known |= {keys[t]: flow.copy() for t, flow in zip(new, computed, strict=True)}
        for key in keys:
            self._flow[key] = known[key]
            self._flow.move_to_end(key)
        while len(self._flow) > self.keep:
            self._flow.popitem(last=False)
        return np.stack([known[key] for key in keys])
