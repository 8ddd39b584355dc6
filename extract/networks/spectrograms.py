"""Waveforms to log spectrograms, in float64 inside: a logarithm near its floor magnifies float32's rounding."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["EXAMPLE_FRAMES", "TBN_RATE", "TBN_SAMPLES", "VGGISH_RATE", "examples", "log_mel", "mel_matrix"]
__all__ += ["stft_magnitude", "tbn_log_spectrogram"]

TBN_RATE = 24000
TBN_SAMPLES = 30696  # 1.279 s: 256 frames

VGGISH_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512  # 25 ms, 10 ms, the next power of two
MEL_BANDS, MEL_LOW, MEL_HIGH = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
EXAMPLE_FRAMES = 96  # 0.96 s


def tbn_log_spectrogram(wave: Tensor) -> Tensor:
    """The audio input of the Temporal Binding Network (Kazakos et al. 2019, arXiv:1908.08498, section 4.1).

    Windows of 10 ms every 5 ms; ln(|X|^2 + 1e-6) of 256 frequencies, without mean or std; ends padded with zeros.

    Args:
        wave: (B, n) float32 in [-1, 1] at 24 kHz; the published input is 1.279 s, n = 30696.

    Returns:
        (B, 256 frequencies, 1 + n // 120 frames) float32; frame k is centred on sample 120 k.
    """
    window = torch.hann_window(240, periodic=True, dtype=torch.float64, device=wave.device)
    spectrum = torch.stft(
        wave.double(), 511, 120, 240, window, center=True, pad_mode="constant", return_complex=True
    )  # fmt: skip
    return (spectrum.real.square() + spectrum.imag.square() + 1e-6).log().float()


def stft_magnitude(wave: Tensor) -> Tensor:
    """|STFT| as VGGish's: (B, n) at 16 kHz -> (B, 1 + (n - 400) // 160, 257) float64; no padding, none for n < 400."""
    wave = wave.double()
    if wave.shape[-1] < WINDOW:
        return wave.new_zeros(*wave.shape[:-1], 0, FFT // 2 + 1)
    window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64, device=wave.device)
    return torch.fft.rfft(wave.unfold(-1, WINDOW, HOP) * window, FFT).abs()


@cache
def mel_matrix() -> np.ndarray:
    """(257 bins, 64 bands) float64: triangles linear in HTK mel, 1127 ln(1 + f / 700), without area normalisation."""

    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0.0, VGGISH_RATE / 2, FFT // 2 + 1))[:, None]
    edges = np.linspace(mel(MEL_LOW), mel(MEL_HIGH), MEL_BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    weights[0] = 0.0  # the constant part of a sound is none
    return weights


def log_mel(wave: Tensor) -> Tensor:
    """VGGish's front end (Hershey et al. 2017, arXiv:1609.09430; values of the released code): ln(mel + 0.01).

    Args:
        wave: (B, n) in [-1, 1] at 16 kHz.

    Returns:
        (B, frames, 64) float32, frames = 1 + (n - 400) // 160, none for n < 400.
    """
    magnitude = stft_magnitude(wave)
    return (magnitude @ torch.from_numpy(mel_matrix()).to(magnitude.device) + LOG_OFFSET).log().float()


def examples(mel: Tensor) -> Tensor:
    """The whole examples of 0.96 s in (B, frames, 64): (B * frames // 96, 96, 64), row by row; the rest is dropped."""
    count = mel.shape[-2] // EXAMPLE_FRAMES
    return mel[:, : count * EXAMPLE_FRAMES].reshape(-1, EXAMPLE_FRAMES, mel.shape[-1])
