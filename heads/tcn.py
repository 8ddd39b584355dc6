"""Temporal convolutional networks over sequences of unequal length (thesis section 5.2.2; Lea et al. 2017).

Sequences come padded, (B, T, C) with mask (B, T) bool. A layer sees zeros where there is no frame, exactly as it does
beyond the ends of the sequence, and padding takes no part in batch statistics: a sequence gives the same values
however far it is padded.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["EDTCN", "MaskedBatchNorm", "TCN"]

KERNEL = 3
LAYERS = 3  # of the vanilla network, of the encoder and of the decoder


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, C, T) with statistics over the frames of mask (B, T) only."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        frames = x.transpose(1, 2)
        kept = frames[mask]
        if len(kept) < 2:  # a single frame has no variance
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        kept = super().forward(kept)
        return kept.new_zeros(frames.shape).masked_scatter(mask[..., None], kept).transpose(1, 2)


class Layer(nn.Module):
    """A convolution along time, batch norm and ReLU; (B, C, T) -> (B, width, T'), zero where there is no frame."""

    def __init__(self, conv: type[nn.Module], channels: int, width: int, stride: int):
        super().__init__()
        # The batch norm subtracts any bias again.
        self.conv = conv(channels, width, KERNEL, stride=stride, padding=KERNEL // 2, bias=False)
        self.norm = MaskedBatchNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, **size) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x, **size), mask))
        return x.masked_fill(~mask[:, None], 0.0)


class TCN(nn.Module):
    """Vanilla TCN: three convolutions of kernel 3, the length kept. (B, T, C), mask (B, T) -> (B, T, width)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.out_channels = width
        self.layers = nn.ModuleList(Layer(nn.Conv1d, channels if not i else width, width, 1) for i in range(LAYERS))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2).masked_fill(~mask[:, None], 0.0)
        for layer in self.layers:
            x = layer(x, mask)
        return x.transpose(1, 2)


class EDTCN(nn.Module):
    """Encoder-decoder TCN: 25 frames become 13, 7, 4 and 7, 13, 25 again. (B, T, C), mask (B, T) -> (B, T, width).

    Three convolutions of stride 2, then three transposed ones; what a decoder layer reads is the sum of the layer
    before it and of the encoder's map of the same length.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.out_channels = width
        self.encoder = nn.ModuleList(Layer(nn.Conv1d, channels if not i else width, width, 2) for i in range(LAYERS))
        self.decoder = nn.ModuleList(Layer(nn.ConvTranspose1d, width, width, 2) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2).masked_fill(~mask[:, None], 0.0)
        before = []  # what each encoder layer read
        for layer in self.encoder:
            before.append((x, mask))
            mask = _halved(mask)
            x = layer(x, mask)
        for layer in self.decoder:
            same_length, mask = before.pop()
            x = layer(x, mask, output_size=same_length.shape[2:])
            if before:  # the first encoder layer read the features themselves: no map of the encoder
                x = x + same_length
        return x.transpose(1, 2)


def _halved(mask: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B, ceil(T / 2)): a cell is there if one of its two frames is, so n frames make ceil(n / 2) cells."""
    return mask[:, ::2] | F.pad(mask, (0, 1))[:, 1::2]
