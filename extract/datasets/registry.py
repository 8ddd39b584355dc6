"""The registry of datasets, and `load_dataset`, the one way in.

A dataset is a factory `factory(data_root, media, **options) -> Dataset` under `@register_dataset(NAME)` in
the module `extract/datasets/NAME.py` (or package); only the module that is asked for is imported. Options are
the dials of a variant: `toykitchen:distractors=4,camera=0.5` calls `factory(..., distractors=4, camera=0.5)`.
"""

import difflib
import hashlib
import importlib.util
import inspect
import os
import pkgutil
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from errors import UserError
from extract.datasets.base import MEDIA, Dataset

__all__ = ["list_datasets", "load_dataset", "parse_options", "register_dataset"]

_FACTORIES: dict[str, Callable[..., Dataset]] = {}
_PACKAGE = __name__.rpartition(".")[0]


def register_dataset(name: str):
    """Decorator: register `factory(data_root: Path | None, media: str, **options) -> Dataset` under `name`.

    Raises:
        ValueError: the name is taken, or is not a plain lower-case identifier.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"dataset name {name!r} must be lower-case letters, digits and underscores")

    def add(factory):
        if name in _FACTORIES:
            raise ValueError(f"dataset {name!r} is registered twice: {_FACTORIES[name]} and {factory}")
        _FACTORIES[name] = factory
        return factory

    return add


def list_datasets() -> list[str]:
    """Names of all registered datasets, in alphabetical order."""
    package = importlib.import_module(_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{_PACKAGE}.{module.name}")
    return sorted(_FACTORIES)


def load_dataset(
    name_or_csv: str | os.PathLike,
    data_root: str | os.PathLike | None = None,
    videos: str | os.PathLike | None = None,
    media: str = "rgb",
) -> Dataset:
    """Load a dataset by name, `name:dial=value,...`, path of a CSV, or `py:FILE.py:FACTORY`.

    Args:
        name_or_csv: what to load. A CSV has columns `video,start,stop[,labels...]`, times in seconds.
        data_root: folder that holds one folder per dataset; default: the environment's CLIPBANK_DATA.
        videos: folder of the videos of a CSV; refused for datasets that know their own layout.
        media: "rgb" (video files or RGB frames) or "flow" (published optical-flow frames).

    Raises:
        UserError: nothing by that name, annotations that are missing or malformed, wrong options.
    """
    text = os.fspath(name_or_csv)
    if media not in MEDIA:
        raise UserError(f"media {media!r} is not one of {', '.join(MEDIA)}")
    if re.search(r"\.csv(\.gz)?$", text, re.IGNORECASE):
        from extract.datasets.csv_file import load_csv_dataset

        return load_csv_dataset(Path(text), videos, media)
    if videos is not None:
        raise UserError(
            f"--videos goes with a CSV; dataset {text!r} finds its videos under its own folder of the data "
            "root (--data, or CLIPBANK_DATA)"
        )
    root = _data_root(data_root)
    if text.startswith("py:"):
        return _load_plugin(text, root, media)
    base, _, dials = text.partition(":")
    dataset = _call(_factory(base), base, root, media, parse_options(dials))
    return replace(dataset, family=dataset.family or base)


def parse_options(dials: str) -> dict[str, int | float | bool | str]:
    """`"distractors=4,camera=0.5"` -> {"distractors": 4, "camera": 0.5}.

    Raises:
        UserError: a part that is not `key=value`, or a key given twice.
    """
    options: dict[str, int | float | bool | str] = {}
    for part in filter(None, dials.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise UserError(f"dataset option {part!r} is not key=value (write name:key=value,key=value)")
        if key in options:
            raise UserError(f"dataset option {key!r} is given twice")
        options[key] = _literal(value)
    return options


def _literal(value: str) -> int | float | bool | str:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _data_root(given) -> Path | None:
    root = given if given is not None else os.environ.get("CLIPBANK_DATA") or None
    return None if root is None else Path(root).expanduser()


def _factory(name: str) -> Callable[..., Dataset]:
    if name.isidentifier() and importlib.util.find_spec(f"{_PACKAGE}.{name}"):
        importlib.import_module(f"{_PACKAGE}.{name}")
    if name in _FACTORIES:
        return _FACTORIES[name]
    known = list_datasets()
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"no dataset {name!r}: {hint}Known: {', '.join(known)}; or the path of a .csv file "
        "(video,start,stop[,labels...]), or py:FILE.py:FACTORY"
    )


def _call(factory, name: str, root: Path | None, media: str, options: dict) -> Dataset:
    """Call a factory, turning options that it does not take into a message that lists those it does."""
    parameters = inspect.signature(factory).parameters
    takes = [key for key in parameters if key not in ("data_root", "media")]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if not open_ended and key not in takes:
            raise UserError(f"dataset {name} has no option {key!r}; it takes: {', '.join(takes) or 'none'}")
    dataset = factory(data_root=root, media=media, **options)
    if not isinstance(dataset, Dataset):
        raise UserError(f"dataset factory {name} returned {type(dataset).__name__}, not an extract.datasets.Dataset")
    return dataset


def _load_plugin(text: str, root: Path | None, media: str) -> Dataset:
    """`py:FILE.py:FACTORY[:dials]`: run one's own file; its hash is kept in `facts["plugin"]`."""
    pieces = text.split(":", 3)
    if len(pieces) < 3 or not pieces[1] or not pieces[2]:
        raise UserError(f"{text!r}: write py:path/to/file.py:factory")
    path = Path(pieces[1]).expanduser()
    if not path.is_file():
        raise UserError(f"{text!r}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"_dataset_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    factory = getattr(module, pieces[2], None)
    if not callable(factory):
        raise UserError(f"{path} has no function {pieces[2]!r}")
    dataset = _call(factory, f"{path.name}:{pieces[2]}", root, media, parse_options("".join(pieces[3:])))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(dataset, facts={**dataset.facts, "plugin": f"sha256:{digest}"})
