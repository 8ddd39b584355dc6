"""Video Swin-T in torch: torchvision's blocks and key names, with torch's fused attention in their windows."""

from __future__ import annotations

import itertools
import re
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import PatchEmbed3d, ShiftedWindowAttention3d, SwinTransformer3d

from .base import CPU_PIXELS
from .clip_model import ClipBackbone, logits_map
from .spec import NetworkSpec
from .spectrograms import tbn_log_spectrogram
from .swin3d import WINDOW_SAMPLES

__all__ = ["SpectrogramSwin", "Swin3d", "VideoSwin"]


class WindowAttention(ShiftedWindowAttention3d):
    """torchvision's attention in shifted windows: the same values, without whole attention matrices in memory.

    A shift moves the first rows of each axis behind its last ones, so that the last window of the axis holds two
    regions that must not see each other. Windows are therefore attended in groups that share one mask: along every
    shifted axis the last one, and all others.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same shape."""
        b, *size, c = x.shape
        window = [min(n, w) for n, w in zip(size, self.window_size, strict=True)]
        # a window as large as its axis needs no shift
        shift = [s if n > w else 0 for n, w, s in zip(size, self.window_size, self.shift_size, strict=True)]
        pad = [-n % w for n, w in zip(size, window, strict=True)]
        if any(pad):
            x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        if any(shift):
            x = x.roll([-s for s in shift], (1, 2, 3))
        grid = [(n + p) // w for n, p, w in zip(size, pad, window, strict=True)]
        x = x.reshape(b, grid[0], window[0], grid[1], window[1], grid[2], window[2], c)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, *grid, -1, c)  # (B, *grid, tokens of a window, C)

        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        bias = self.get_relative_position_bias(window).to(qkv.dtype)
        halves = [(slice(None),) if s == 0 else (slice(0, -1), slice(-1, None)) for s in shift]
        y = qkv.new_empty(*x.shape)
        for part in itertools.product(*halves):
            index = (slice(None), *part)
            q, k, v = qkv[index].flatten(0, 3).permute(2, 0, 3, 1, 4)  # each (windows, heads, tokens, channels)
            mask = self._mask([p.start == -1 for p in part], window, shift, bias)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            y[index] = out.transpose(1, 2).reshape(y[index].shape)
        y = self.proj(y)

        y = y.reshape(b, *grid, *window, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
        y = y.reshape(b, *(n + p for n, p in zip(size, pad, strict=True)), c)
        if any(shift):
            y = y.roll(shift, (1, 2, 3))
        return y[:, : size[0], : size[1], : size[2]].contiguous() if any(pad) else y

    def _mask(self, last: list[bool], window: list[int], shift: list[int], bias: Tensor) -> Tensor:
        """The bias (1, heads, tokens, tokens), less 100 between regions that only the shift brought together."""
        if not any(last):
            return bias
        region = torch.zeros(window, device=bias.device)
        for axis, (is_last, w, s) in enumerate(zip(last, window, shift, strict=True)):
            if is_last:
                region.narrow(axis, w - s, s).add_(2**axis)
        region = region.flatten()
        return bias - 100.0 * (region[:, None] != region[None, :]).to(bias.dtype)


def _block(*args, attn_layer: type[nn.Module], **kwargs) -> SwinTransformerBlock:
    return SwinTransformerBlock(*args, attn_layer=WindowAttention, **kwargs)


class VideoSwin(SwinTransformer3d):
    """(B, C, T, H, W) -> (B, 768, ceil(T/2), ceil(H/32), ceil(W/32)); with layer "logits" (B, classes, 1, 1, 1)."""

    def __init__(self, in_channels: int = 3, classes: int = 400, layer: str = "norm") -> None:
        super().__init__(
            patch_size=[2, 4, 4],
            embed_dim=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=[8, 7, 7],
            stochastic_depth_prob=0.0,
            block=_block,
            num_classes=1,  # replaced below
            patch_embed=partial(PatchEmbed3d, in_channels=in_channels),
        )
        self.layer = layer
        self.head = nn.Linear(self.num_features, classes) if layer == "logits" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.features(self.patch_embed(x)))
        if self.layer == "logits":
            return logits_map(self.head(x.mean((1, 2, 3))))
        return x.movedim(-1, 1)


class Swin3d(ClipBackbone):
    """RGB or flow, by the spec's channels."""

    stem, head = "patch_embed.proj.weight", "head."

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, VideoSwin(spec.channels, spec.options["classes"], spec.layer))
        self._inflated = False

    def load_weights(self, weights: str | None) -> None:
        self._inflated = False
        super().load_weights(weights)
        if self._inflated:
            self.weights_origin += " (first convolution: its mean over R, G, B for each channel)"

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Omnivore's names to torchvision's; its depth embedding and its image and depth heads have no use here."""
        unused = ("depth_patch_embed.", "heads.image.", "heads.rgbd.")
        named = {key.removeprefix("trunk."): value for key, value in state.items()}
        return {_own_key(key): value for key, value in named.items() if not key.startswith(unused)}

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        first, own = state.get(self.stem), self.spec.channels
        if first is not None and first.dim() == 5 and first.shape[1] == 3 != own:
            state = state | {self.stem: first.mean(1, keepdim=True).repeat(1, own, 1, 1, 1)}
            self._inflated = True
        return super().adapt_to(state)


class SpectrogramSwin(Swin3d):
    """Waveforms: every frame of the clip is the spectrogram of a window."""

    def normalise(self, x: Tensor) -> Tensor:
        """(B, samples) float32 at 24 kHz -> (B, 1, frames, size, size)."""
        frames, size = self.spec.options["frames"], self.spec.options["size"]
        spare = x.shape[1] - WINDOW_SAMPLES
        starts = [round(i * spare / max(1, frames - 1)) for i in range(frames if spare else 1)]
        windows = torch.stack([x[:, s : s + WINDOW_SAMPLES] for s in starts], 1)
        with torch.autocast(x.device.type, enabled=False):
            pictures = tbn_log_spectrogram(windows.flatten(0, 1))[:, None]
            pictures = F.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True)
        clip = pictures.reshape(len(x), 1, len(starts), size, size)
        return clip if spare else clip.expand(-1, -1, frames, -1, -1)

    def _rows_at_once(self, x: Tensor) -> int:
        pixels = self.spec.options["frames"] * self.spec.options["size"] ** 2
        return len(x) if self.device.type != "cpu" else max(1, CPU_PIXELS // pixels)


def _own_key(key: str) -> str:
    """`layers.1.blocks.0.mlp.fc1.bias` to `features.2.0.mlp.0.bias`."""
    key = re.sub(r"^layers\.(\d)\.blocks\.", lambda m: f"features.{2 * int(m[1])}.", key)
    key = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"features.{2 * int(m[1]) + 1}.", key)
    key = key.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")
    return key.replace("heads.video.1.", "head.", 1) if key.startswith("heads.video.") else key
