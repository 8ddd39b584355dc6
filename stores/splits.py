"""What `[scheme:]part[+part]` means: which clips of a table are in a split."""

import os
from collections.abc import Mapping

import numpy as np

from errors import UserError


def split_column(split: str) -> str:
    """The column of a clips table that `[scheme:]part[+part]` asks for."""
    scheme = split.rpartition(":")[0]
    return f"split_{scheme}" if scheme else "split"


def split_mask(clips: Mapping[str, np.ndarray], split: str, where: str | os.PathLike) -> np.ndarray:
    """(clips,) bool: those in `[scheme:]part[+part]`; `trainval` is train and val.

    clips: the columns `split`, `split_<scheme>`, ... of strings. where: the store that the message names.
    Raises UserError for a scheme or a part that is not there; it lists those that are.
    """
    scheme, _, part = split.rpartition(":")
    column = split_column(split)
    if column not in clips:
        schemes = sorted(name.removeprefix("split_") for name in clips if name.startswith("split_"))
        ways = [f"--split {part}"] if "split" in clips else []
        ways += [f"--split SCHEME:{part} with scheme {' or '.join(schemes)}"] if schemes else []
        said = f"no split scheme {scheme!r}" if scheme else "no split without a scheme"
        raise UserError(f"{where}: {said}; {'say ' + ', or '.join(ways) if ways else 'its clips are in no split'}")
    parts = ["train", "val"] if part == "trainval" else part.split("+")
    there = set(clips[column].tolist())
    unknown = [p for p in parts if p not in there]
    if unknown and not (part == "trainval" and there & set(parts)):
        raise UserError(f"{where}: no clip is in split {unknown[0]!r}; there are {', '.join(sorted(there))}")
    return np.isin(clips[column].astype(object), parts)
