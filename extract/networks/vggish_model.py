"""VGGish in torch, with the key names of the published torchvggish checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from errors import UserError

from ..weights import combined_hash, file_hash, load_into, resolve
from .base import Network
from .spec import NetworkSpec
from .spectrograms import examples, log_mel
from .vggish import PCA

__all__ = ["VGG", "VGGish", "read_pca"]

_PCA_SHAPES = {"pca_eigen_vectors": (128, 128), "pca_means": (128, 1)}
_PCA_CLIP = 2.0


class VGG(nn.Module):
    """Examples (B, 1, 96, 64) -> (B, 128), before the last ReLU."""

    def __init__(self, post: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, None, 128, None, 256, 256, None, 512, 512, None):
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 128),
        )
        if post:
            for key, shape in _PCA_SHAPES.items():
                self.register_buffer(key, torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.embeddings(x.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order: channels last

    def postprocess(self, x: Tensor) -> Tensor:
        """AudioSet's: (B, 128) -> whole numbers 0..255, in float64 inside so that no precision moves a rounding."""
        whitened = (x.double() - self.pca_means.double().squeeze(1)) @ self.pca_eigen_vectors.double().T
        clipped = whitened.clamp(-_PCA_CLIP, _PCA_CLIP)
        return ((clipped + _PCA_CLIP) * (255.0 / (2.0 * _PCA_CLIP))).round().float()


class VGGish(Network):
    """Waveforms -> log-mel examples -> VGG, then a ReLU and the post-processing as the options say."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, VGG(spec.options["post"]))
        self._pca: Path | None = None

    def feature_map(self, x: Tensor) -> Tensor:
        """Examples (B, 1, 96, 64) -> (B, 128) float32."""
        x = self.module(x).float()
        if self.spec.options["relu"]:
            x = x.relu()
        return self.module.postprocess(x) if self.spec.options["post"] else x

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        return {"vector": self.feature_map(examples(log_mel(x)).unsqueeze(1))}

    def load_weights(self, weights: str | None) -> None:
        """As every network's; with post=True the weights' hash covers the PCA's file too."""
        self._pca = None
        load_into(self, weights)
        if self._pca is not None:
            self.weights_hash = combined_hash(self.weights_hash, file_hash(self._pca))

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A whole model saved with its post-processor (`pproc.pca_means`) to the module's own names."""
        return {key.removeprefix("pproc."): value for key, value in state.items()}

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.spec.options["post"]:
            return {key: value for key, value in state.items() if key not in _PCA_SHAPES}
        if set(state) & set(_PCA_SHAPES):
            return state
        self._pca = resolve("vggish post=True", PCA).path
        return state | read_pca(self._pca)


def read_pca(path: Path) -> dict[str, Tensor]:
    """{pca_eigen_vectors: (128, 128), pca_means: (128, 1)} float32, from torchvggish's .pth or AudioSet's .npz.

    Raises:
        UserError: not such a file.
    """
    try:
        if Path(path).suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                found = {key: file[key] for key in file.files}
        else:
            # such a file may hold numpy arrays: their constructors, and nothing else, are let through
            with torch.serialization.safe_globals(_ARRAYS):
                found = torch.load(path, map_location="cpu", weights_only=True)
        state = {key: torch.as_tensor(found[key]).float().reshape(shape) for key, shape in _PCA_SHAPES.items()}
    except Exception as error:  # torch and numpy raise many kinds for a damaged or a foreign file
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} is not the PCA of VGGish: expected pca_eigen_vectors (128, 128) and pca_means (128): {line[:200]}"
        ) from error
    return state


_reconstruct = np.zeros(0).__reduce__()[0]
_ARRAYS = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),  # the name until numpy 2
    _reconstruct,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
]
