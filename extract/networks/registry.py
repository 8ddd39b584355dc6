"""One table of networks: from a name and options to a spec (no torch), and from there to a network."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from errors import UserError

from .spec import NetworkSpec

__all__ = [
    "ALIASES",
    "create_backbone",
    "create_network",
    "list_networks",
    "network_spec",
    "register_library",
    "register_network",
    "trained_options",
    "weights_options",
]

SpecFunction = Callable[..., NetworkSpec]
FitFunction = Callable[[Mapping[str, Any]], dict[str, Any]]

_NETWORKS: dict[str, SpecFunction] = {}
_LIBRARIES: dict[str, SpecFunction] = {}
_FIT: dict[str, FitFunction] = {}
_LIBRARY_FIT: dict[str, Callable[[str, str], dict[str, Any]]] = {}
_HIDDEN: set[str] = set()
ALIASES = {"i3d": "i3d_rgb"}


def register_network(
    name: str, *, hidden: bool = False, fit: FitFunction | None = None
) -> Callable[[SpecFunction], SpecFunction]:
    """Register a function from keyword options to a `NetworkSpec` under `name`.

    The function must not import torch: the spec's `builder` names the code that does.
    `hidden` networks (benchmarks, tests) can be created but are not listed.
    `fit` tells from a checkpoint's tensors (by published key) the options that it asks for: its preprocessing, its
    class count. They apply unless the user gives them.

    Raises:
        ValueError: the name is taken, by a network or an alias.
    """

    def register(function: SpecFunction) -> SpecFunction:
        if name in _NETWORKS or name in ALIASES:
            raise ValueError(f"a network named {name!r} is already registered")
        _NETWORKS[name] = function
        if hidden:
            _HIDDEN.add(name)
        if fit is not None:
            _FIT[name] = fit
        return function

    return register


def register_library(
    prefix: str, *, fit: Callable[[str, str], dict[str, Any]] | None = None
) -> Callable[[SpecFunction], SpecFunction]:
    """Register a function (model name, **options) -> `NetworkSpec` that serves every network "PREFIX:NAME".

    It reads the spec from the library's own metadata, so it may import the library, and torch.
    `fit` (model name, weights as given) returns the options that these weights ask for, as for `register_network`.

    Raises:
        ValueError: the prefix is taken.
    """

    def register(function: SpecFunction) -> SpecFunction:
        if prefix in _LIBRARIES or prefix == "py":
            raise ValueError(f"a library named {prefix!r} is already registered")
        _LIBRARIES[prefix] = function
        if fit is not None:
            _LIBRARY_FIT[prefix] = fit
        return function

    return register


def list_networks(pattern: str = "*", *, hidden: bool = False) -> list[str]:
    """Names that match a wildcard pattern, in natural order (r3d9 before r3d50)."""
    names = [n for n in _NETWORKS if fnmatch.fnmatchcase(n, pattern) and (hidden or n not in _HIDDEN)]
    return sorted(names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)])


def network_spec(name: str, **options: Any) -> NetworkSpec:
    """The spec of a network with these options; builds nothing, reads no weights, imports no torch.

    Args:
        name: a registered name, an alias ("i3d"), either with a weights tag ("i3d_rgb.kinetics400"),
            or "py:path/to/file.py:factory" for code of one's own (that file is run, and may import torch),
            or "LIBRARY:NAME" for a model of a library: tv, timm, hf.

    Raises:
        UserError: unknown name (near matches are listed), unknown option, or a value the network refuses.
    """
    if name.startswith("py:"):
        made = _call_own(name, options)
        return getattr(made, "spec", made)
    if ":" in name:
        return _call_library(name, options)
    arch, _tag = _split_tag(name)
    return _call(arch, _NETWORKS[arch], options)


def weights_options(name: str, weights: str | None = None) -> dict[str, Any]:
    """The options that a network's weights ask for: those of the table entry, or what `fit` reads in a checkpoint.

    Args: as for `create_network`. Returns {} for random weights, and where nothing can be found (creating the network
    says so). Raises `UserError` for a file that is not a checkpoint, and for a table entry or a training of another
    network, or of a head alone.
    """
    from .. import weights as weights_module

    if weights and (path := _checkpoint(weights)).is_file():
        weights_module.check_trained(path, _spec_name(name))
    if trained := trained_options(weights):
        return trained
    if ":" in name:
        prefix, _, model = name.partition(":")
        known = weights is not None and not weights.startswith("random:") and prefix in _LIBRARY_FIT
        return _LIBRARY_FIT[prefix](model, weights) if known else {}
    arch, tag = _split_tag(name)
    weights = weights or (f"{arch}.{tag}" if tag else None)
    if weights is None:
        entry = weights_module.TABLE.get(network_spec(arch).weights)
    else:
        entry = weights_module.find_entry(arch, weights)
    if entry is not None:  # on this machine or still to be downloaded
        return dict(entry.options)
    if weights is None or weights.startswith("random:"):
        return {}
    found = weights_module.resolve(arch, "", weights, download=False, missing_ok=True)
    if found is None:
        return {}
    if found.entry is not None:
        return dict(found.entry.options)
    return _FIT[arch](weights_module.read_state(found.path)[0]) if arch in _FIT else {}


def trained_options(weights: str | None) -> dict[str, Any]:
    """The options of a network that a run of base training, or its checkpoint, was made with; {} for other weights.

    What they say of a clip (clip_len, stride, fps, resize) the user chose, so it counts before a dataset's preset.
    """
    from .. import weights as weights_module

    facts = weights_module.trained_facts(_checkpoint(weights)) if weights else None
    return {} if facts is None else dict(facts["options"])


def _checkpoint(weights: str) -> Path:
    """The file that a path of weights means: of a run folder, its best checkpoint."""
    from ..weights import BEST

    path = Path(weights).expanduser()
    return path / BEST if path.is_dir() else path


def _spec_name(name: str) -> str:
    """What the spec of a network is called, whatever its options."""
    if name.startswith("py:"):
        return _own_name(name)
    return network_spec(name).name if ":" in name else _split_tag(name)[0]


def create_network(name: str, weights: str | None = None, **options: Any) -> Any:
    """A network ready to run on the CPU in float32 (`net.to(device, precision)` moves it).

    Args:
        name: as for `network_spec`.
        weights: None for the published ones, a path, a table entry ("i3d_rgb.kinetics400"), or "random:SEED".
        options: what the network's entry takes, e.g. layer="Mixed_4f", clip_len=16, resize={...}, boxes=True.

    Raises:
        UserError: unknown name or option; weights that cannot be found or do not fit.
    """
    if name.startswith("py:"):
        net = _call_own(name, options)
        net = net.build() if isinstance(net, NetworkSpec) else net
    elif ":" in name:
        net = _call_library(name, weights_options(name, weights) | options).build()
    else:
        arch, tag = _split_tag(name)
        weights = weights or (f"{arch}.{tag}" if tag else None)
        net = _call(arch, _NETWORKS[arch], weights_options(name, weights) | options).build()
    net.load_weights(weights)
    return net.to("cpu", "fp32")


def create_backbone(name: str, weights: str | None = None, **options: Any) -> Any:
    """`create_network` for networks of kind "backbone".

    Raises:
        UserError: the network is of another kind.
    """
    kind = network_spec(name, **options).kind
    if kind != "backbone":
        raise UserError(
            f"{name} is a {kind} network, not a backbone: use create_network, or --detector on the command line"
        )
    return create_network(name, weights, **options)


def _split_tag(name: str) -> tuple[str, str]:
    """("i3d_rgb", "kinetics400") of "i3d.kinetics400"; the tag is "" where there is none."""
    arch, _, tag = name.partition(".")
    arch = ALIASES.get(arch, arch)
    if arch not in _NETWORKS:
        known = list_networks() + list(ALIASES)
        near = difflib.get_close_matches(arch.lower(), known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see `clipbank weights list`"
        raise UserError(f"no network is called {name!r}: {hint} (registered: {', '.join(list_networks())})")
    return arch, tag


def _call_library(name: str, options: dict[str, Any]) -> NetworkSpec:
    prefix, _, model = name.partition(":")
    if prefix not in _LIBRARIES or not model:
        near = difflib.get_close_matches(prefix, [*_LIBRARIES, "py"], n=1)
        hint = f"did you mean {near[0]}:{model or 'NAME'}? " if near else ""
        raise UserError(
            f"no network is called {name!r}: {hint}before the colon comes one of "
            f"{', '.join([*sorted(_LIBRARIES), 'py'])}, after it a name"
        )
    return _call(name, functools.partial(_LIBRARIES[prefix], model), options)


_KINDS: dict[str, Any] = {  # what an annotation lets through, by its name
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "dict": Mapping,
    "Sequence": (list, tuple),
    "None": type(None),
}


def _call(name: str, function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """`function(**options)`, its options checked by name and, where it annotates them plainly, by kind."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = sorted(set(options) - set(parameters))
        if unknown:
            raise UserError(
                f"network {name!r} has no option {', '.join(map(repr, unknown))}; "
                f"it takes {', '.join(parameters) or 'none'}"
            )
    return function(**{option: _checked(name, option, value, parameters) for option, value in options.items()})


def _checked(name: str, option: str, value: Any, parameters: Mapping[str, inspect.Parameter]) -> Any:
    """An option's value if it is of the annotated kind.

    A whole number becomes a float where one is asked for (one value, one recipe), and text where text is: the command
    line reads layout=2018 and layer=3 as numbers.

    Raises:
        UserError: it is of another kind, or not finite.
    """
    annotation = parameters[option].annotation if option in parameters else ""
    kinds = [part.strip().partition("[")[0] for part in str(annotation).split("|")]
    if not set(kinds) <= set(_KINDS):
        return value  # code of one's own may annotate as it likes, or not at all
    if isinstance(value, int) and not isinstance(value, bool) and "int" not in kinds:
        value = float(value) if "float" in kinds else str(value) if "str" in kinds else value
    fits = "bool" in kinds if isinstance(value, bool) else any(isinstance(value, _KINDS[kind]) for kind in kinds)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"network {name!r}: {option} must be {' or '.join(kinds)}, got {value!r}")
    return value


def _call_own(name: str, options: dict[str, Any]) -> Any:
    """What the factory of "py:path/to/file.py:factory" returns, a spec or a network, its spec naming file and hash."""
    factory, short_name, code_hash = _load_factory(name)
    made = _call(name, factory, options)
    spec = getattr(made, "spec", made)
    if not isinstance(spec, NetworkSpec):
        raise UserError(
            f"{name}: the factory must return a NetworkSpec, or a Network or torch module with a `spec`, "
            f"got {type(made).__name__}"
        )
    # what the factory was told is part of the recipe, whether or not its spec repeats it
    spec = replace(spec, name=short_name, code_hash=code_hash, options=options | spec.options)
    if isinstance(made, NetworkSpec):
        return spec
    if not hasattr(made, "load_weights"):  # a plain torch module that carries its spec
        from .base import Network

        return Network(spec, made)
    made.spec = spec
    return made


def _load_factory(name: str) -> tuple[Callable[..., Any], str, str]:
    """(factory, "py:file.py:factory" without its folder, sha256 of the file) of "py:path/to/file.py:factory"."""
    path_text, _, attribute = name.removeprefix("py:").rpartition(":")
    path = Path(path_text)
    if not path_text or not path.is_file():
        raise UserError(f"{name}: no such file: {path_text!r} (expected py:path/to/file.py:factory)")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module_name = f"_clipbank_py_{digest[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        found = importlib.util.spec_from_file_location(module_name, path)
        if found is None or found.loader is None:
            raise UserError(f"{name}: {path} is not a Python file (its name must end in .py)")
        module = importlib.util.module_from_spec(found)
        sys.modules[module_name] = module
        try:
            found.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise UserError(f"{name}: running {path} failed: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, attribute, None)):
        raise UserError(f"{name}: {path} has no callable {attribute!r}")
    return getattr(module, attribute), _own_name(name), f"sha256:{digest}"


def _own_name(name: str) -> str:
    """What the spec of "py:path/to/file.py:factory" is called: that without its folder."""
    path, _, attribute = name.removeprefix("py:").rpartition(":")
    return f"py:{Path(path).name}:{attribute}"
