"""Every store under a folder, and where two that go by one name are not the same features."""

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from errors import MachineError, UserError

from .files import is_url
from .manifest import recipe_difference
from .reader import Store, open_store
from .summary import counts_by_status, declared_origin, provenance_of, stored_sizes

SUFFIXES = (".zarr", ".h5")
TIMEOUT_S = 30
MOST_LISTED = 16 * 1024 * 1024  # bytes of a server's list of stores


def catalogue(root: str | os.PathLike) -> list[dict]:
    """One plain dict a store under `root` (or of `root` itself), by path; all that JSON holds.

    root: a folder, or the URL of one that `clipbank serve` offers.

    {"store": its path, "dataset", "feature" (its name), "network", "axis", "recipe_hash", "origin" (a line on stores
    that were imported, else None), "rows": {"total", "ok", "failed", "absent", "pending"}, "arrays": {name: "shape
    dtype"}, "stored_bytes", "weights", "lineage", "licence", "runs", "first_run" and "last_run": {"started", "user",
    "host"} or None, "sealed": number of the seal or None,
    "differs": [{"from": path, "same": "feature" or "network", "fields": ["weights: here ..., there ..."]}]}

    "stored_bytes" is None, and "runs" 0, where that cannot be known from here. A store that cannot be read is
    {"store": path, "error": its line}. Raises UserError if `root` is no folder, MachineError if a URL does not answer.
    """
    entries, recipes = [], {}
    for path in stores_at(root) if is_url(root) else stores_under(root):
        try:
            store = open_store(path)
            entries.append(entry_of(store))
            recipes[str(path)] = store.manifest.recipe
        except (UserError, MachineError) as error:
            entries.append({"store": str(path), "error": error.message})
        except OSError as error:  # a colleague's folder that may not be listed, a disk that fails
            entries.append({"store": str(path), "error": f"{error.filename}: {error.strerror}"})
    _compare([entry for entry in entries if "error" not in entry], recipes)
    return entries


def stores_under(root: str | os.PathLike) -> Iterator[Path]:
    """Folders NAME.zarr and files NAME.h5, by path; nothing within a store, nothing hidden.

    Raises UserError if `root` is not there, or another file.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"there is no folder {root}")
    if root.suffix in SUFFIXES:
        yield root
        return
    if not root.is_dir():
        raise UserError(f"{root} is neither a folder nor a store")
    for parent, folders, files in os.walk(root, followlinks=True):
        stores = [name for name in (*folders, *files) if Path(name).suffix in SUFFIXES and not name.startswith(".")]
        yield from (Path(parent, name) for name in sorted(stores))
        folders[:] = sorted(name for name in folders if name not in stores and not name.startswith("."))


def stores_at(url: str) -> list[str]:
    """URLs of the stores that `clipbank serve` offers there. Raises UserError for other servers, MachineError."""
    url = str(url).rstrip("/")
    if url.endswith(SUFFIXES):
        return [url]
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} cannot be listed: name a store there, or a folder that `clipbank serve` offers")
    try:
        with urllib.request.urlopen(f"{url}/", timeout=TIMEOUT_S) as answer:
            names = json.loads(answer.read(MOST_LISTED))["stores"]
        return [f"{url}/{urllib.parse.quote(name)}" for name in names]
    except OSError as error:
        raise MachineError(f"{url} does not answer: {error}; is the server running?") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{url} does not list stores: it is not `clipbank serve` that answers there") from error


def entry_of(store: Store) -> dict:
    """What `catalogue` says of one store, but for "differs"."""
    manifest = store.manifest
    runs = [{key: run.get(key) for key in ("started", "user", "host")} for run in provenance_of(store).values()]
    runs.sort(key=lambda run: str(run["started"]))
    return {
        "store": str(store.path),
        "dataset": manifest.dataset.get("name"),
        "feature": PurePosixPath(store.path).stem,
        "network": manifest.spec.get("name"),
        "axis": manifest.dataset.get("axis"),
        "recipe_hash": manifest.recipe_hash,
        "origin": declared_origin(manifest.recipe),
        "rows": {"total": int(store.visible.sum()), **counts_by_status(store.status()[store.visible])},
        "arrays": {name: f"{list(spec.row_shape)} {spec.dtype}" for name, spec in manifest.arrays.items()},
        "stored_bytes": stored_sizes(store)[0],
        "weights": manifest.spec.get("weights_origin"),
        "lineage": manifest.lineage,
        "licence": manifest.spec.get("licence"),
        "runs": len(runs),
        "first_run": runs[0] if runs else None,
        "last_run": runs[-1] if runs else None,
        "sealed": manifest.seal["k"] if manifest.seal else None,
    }


def _compare(entries: list[dict], recipes: Mapping[str, Mapping]) -> None:
    """Fills in "differs": against the first store of the same feature name, then of the same network."""
    first: dict[tuple[str, str], dict] = {}
    for entry in entries:
        entry["differs"] = []
        for same in ("feature", "network"):
            if entry[same] is None:
                continue
            other = first.setdefault((same, entry[same]), entry)
            told = [difference["from"] for difference in entry["differs"]]
            if other["recipe_hash"] == entry["recipe_hash"] or other["store"] in told:
                continue
            lines = recipe_difference(recipes[entry["store"]], recipes[other["store"]], "here", "there")
            entry["differs"].append({"from": other["store"], "same": same, "fields": lines})
