"""Where a model runs, in which precision, and how batches get there."""

from __future__ import annotations

import numpy as np

from errors import UserError

__all__ = ["autocast", "pick_device", "to_device"]


def to_device(batch, device):
    """Nested dicts of arrays to tensors on `device`; copies to a GPU do not wait. Lists (of arrays) likewise."""
    import torch

    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    tensor = torch.from_numpy(np.ascontiguousarray(batch))
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def pick_device(device: str | None) -> str:
    """cpu, cuda, cuda:1 ...; None and "auto" are the first GPU if there is one. Raises UserError for one that is not
    there."""
    import torch

    if device is None or device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError:
        asked = None
    if asked is None or asked.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: not one of auto, cpu, cuda, cuda:1 ...")
    if asked.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not there:
            raise UserError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
        if (asked.index or 0) >= there:
            raise UserError(f"--device {device}: there are {there} CUDA devices here, the last is cuda:{there - 1}")
    return device


def autocast(device: str, precision: str):
    """Mixed precision for `bf16`, nothing for `fp32`."""
    import torch

    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
