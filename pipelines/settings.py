"""`--set key=value`: typed by the fields of a config, with errors that help."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from types import NoneType
from typing import get_args, get_type_hints

from errors import UserError

__all__ = ["parse_settings", "part_of", "settings_of", "with_sizes"]

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def settings_of(config: type, but: Collection[str] = ()) -> dict[str, type]:
    """{field name: type} of a config dataclass; of `X | None` (None: as another setting says) it is X.

    but: fields that nobody sets, because the data decides them.
    """
    hints = get_type_hints(config)
    return {field.name: _but_none(hints[field.name]) for field in fields(config) if field.name not in but}


def _but_none(hint):
    return next((kind for kind in get_args(hint) if kind is not NoneType), hint) if NoneType in get_args(hint) else hint


def part_of(chosen: Mapping[str, object], config: type) -> dict[str, object]:
    """Of the chosen settings, those that are fields of a config dataclass."""
    names = {field.name for field in fields(config)}
    return {key: value for key, value in chosen.items() if key in names}


def with_sizes(chosen: Mapping[str, object], config: type, sizes: Mapping[str, int]) -> dict[str, object]:
    """What a config dataclass takes: the settings chosen for it, and the sizes that the data decide. Raises UserError
    for a chosen size that is another."""
    for name, size in sizes.items():
        if chosen.get(name, size) != size:
            raise UserError(f"--set {name}={chosen[name]}: the data decide it, and it is {size} here; leave it out")
    return {**part_of(chosen, config), **sizes}


def parse_settings(
    given: Mapping[str, object] | Iterable[str], known: Mapping[str, type], epochs: int | None = None
) -> dict[str, object]:
    """{"lr": 0.01} or ["lr=0.01"] -> typed values; `epochs` (--epochs), where it is given, counts before --set. Raises
    UserError for a key that is not there (naming those that are, the nearest first) or a value of another type."""
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        pairs = []
        for text in given:
            key, equals, value = str(text).partition("=")
            if not equals:
                raise UserError(f"--set {text}: write key=value")
            pairs.append((key.strip(), value.strip()))
    chosen = {key: _typed(key, value, known) for key, value in pairs}
    return chosen if epochs is None else chosen | {"epochs": epochs}


def _typed(key: str, value: object, known: Mapping[str, type]):
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3)
        hint = f"near it are {', '.join(near)}; " if near else ""
        raise UserError(f"--set {key}: no such setting; {hint}there are {', '.join(sorted(known))}")
    kind = known[key]
    try:
        if kind is bool:
            return value if isinstance(value, bool) else _BOOLEANS[str(value).lower()]
        if kind is int and not (isinstance(value, (int, str)) and not isinstance(value, bool)):
            raise ValueError
        typed = kind(value)
    except (KeyError, ValueError, TypeError):
        article = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, kind.__name__)
        raise UserError(f"--set {key}={value}: {key} is {article}") from None
    if kind is float and not math.isfinite(typed):
        raise UserError(f"--set {key}={value}: {key} must be finite")
    return typed
