"""What networks share: batch norms folded into convolutions; and, of TensorFlow-born ones, SAME padding and pooling.

SAME padding is worked out from the input at run time: in every dimension
`max((ceil(n / stride) - 1) * stride + kernel - n, 0)` zeros, the odd one at the end.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "conv2d",
    "conv3d",
    "fold_batch_norm",
    "folded_copy",
    "fuse_all",
    "pad_same",
    "same_max_pool",
    "same_padding",
]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(before, after) zeros that SAME puts around one dimension."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """(input, padding for the convolution itself): zeros are copied in only where the two sides differ."""
    padding = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    if all(before == after for before, after in padding):
        return x, tuple(before for before, _ in padding)
    return F.pad(x, [p for pair in reversed(padding) for p in pair]), (0,) * len(padding)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple, groups: int) -> Tensor:
    """2D convolution; in float32 on the CPU without gradients always oneDNN's.

    On one thread `F.conv2d` takes torch's own kernel for 1 x 1 filters over fewer than 16 images, half as fast.
    """
    if _onednn(x) and x.dtype == weight.dtype == torch.float32:
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1), groups)
    return F.conv2d(x, weight, bias, stride, padding, 1, groups)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
    """3D convolution; on the CPU without gradients always oneDNN's.

    For a single small clip `F.conv3d` chooses torch's slow kernel, which takes 4 times as long.
    """
    if _onednn(x) and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.bfloat16):
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


def _onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()


def same_max_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """SAME max-pooling of values >= 0 (after a ReLU, where zeros around the border and no border are one).

    On the CPU without gradients it goes one dimension at a time with elementwise maxima: the same values, 3 to 20
    times faster than torch's own kernel.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        padding = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
        return F.max_pool3d(F.pad(x, [p for pair in reversed(padding) for p in pair]), kernel, stride)
    for dim, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
        if k > 1:
            x = _max_along(x, dim, k, s)
    return x


def _max_along(x: Tensor, dim: int, kernel: int, stride: int) -> Tensor:
    """Maximum over `kernel` neighbours along one dimension, windows clipped at the borders."""
    size = x.shape[dim]
    out = -(-size // stride)
    before = same_padding(size, kernel, stride)[0]

    def tap(j: int) -> tuple[int, Tensor]:
        """(first output that sees it, the inputs i * stride - before + j that exist)."""
        low = max(0, -((j - before) // stride))
        high = min(out - 1, (size - 1 + before - j) // stride)
        index = [slice(None)] * x.dim()
        index[dim] = slice(low * stride - before + j, high * stride - before + j + 1, stride)
        return low, x[tuple(index)]

    y, owned = tap(before)[1], False  # this one exists for every output
    for j in range(kernel):
        if j == before:
            continue
        low, values = tap(j)
        if values.shape[dim] == out:
            y, owned = torch.maximum(y, values), True
        elif values.shape[dim]:
            if not owned:
                y, owned = y.clone(), True
            part = y.narrow(dim, low, values.shape[dim])
            torch.maximum(part, values, out=part)
    return y


def fold_batch_norm(conv: nn.Module, bn: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the one convolution that equals `bn(conv(x))` at inference; folded in float64."""
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    weight = conv.weight.double() * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    bias = bn.bias.double() - bn.running_mean.double() * scale
    layout = torch.channels_last_3d if weight.dim() == 5 else torch.channels_last
    return weight.to(dtype).contiguous(memory_format=layout), bias.to(dtype)


def fuse_all(module: nn.Module, dtype: torch.dtype) -> None:
    """Call `fold(dtype)` on every submodule that has it."""
    with torch.no_grad():
        for part in module.modules():
            if hasattr(part, "fold"):
                part.fold(dtype)


class FoldedConv(nn.Module):
    """A convolution with the batch norm after it folded in; casts its input to the dtype of its weights."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.folded = fold_batch_norm(conv, norm, dtype)
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.folded
        x = x.to(weight.dtype)
        if weight.dim() == 5:
            return conv3d(x, weight, bias, self.stride, self.padding)
        return conv2d(x, weight, bias, self.stride, self.padding, self.groups)


def folded_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for inference in which every convolution takes in the batch norm registered right after it.

    For modules that register their parts in the order in which they run, and 3D convolutions without groups. A
    Sequential that ends in a convolution counts as that convolution (torchvision's Conv2Plus1D).
    """
    made = copy.deepcopy(module)
    with torch.no_grad():
        for part in list(made.modules()):
            for (name, _), (norm_name, norm) in pairwise(list(part.named_children())):
                owner, last = _last_of(part, name)
                conv = owner._modules[last]
                if isinstance(conv, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                    owner._modules[last] = FoldedConv(conv, norm, dtype)
                    part._modules[norm_name] = nn.Identity()
    return made


def _last_of(owner: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Where a child ends: (its owner, its name), through nested Sequentials."""
    while isinstance(owner._modules[name], nn.Sequential) and len(owner._modules[name]):
        owner = owner._modules[name]
        name = next(reversed(owner._modules))
    return owner, name
