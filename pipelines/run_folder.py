"""What a trained head leaves behind, as files that any program reads.

    run.json             what was trained on what: head, settings, stores by recipe and seal, lineage, versions
    best.safetensors     the head with the best validation figure; its config is in the metadata
    last.safetensors     the head and the optimiser's momentum after the last finished epoch: where a rerun goes on
    action_prior.npy     mu(verb, noun) of the training clips (thesis eq. 3.14)
    log.csv              one line an epoch
    metrics.json         figures of the best head; metrics_<split>.json of later evaluations
    tensorboard/         the same for TensorBoard, where that is installed
    pictures/            attention over boxes, training curve ...
    index/               embeddings for search

Every file is written whole or not at all, but those of tensorboard/, which that library appends to.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import numpy as np

from errors import UserError
from heads import create_head, get_head
from stores import open_store
from stores.files import is_url
from stores.manifest import recipe_difference, storage_errors, write_durable

__all__ = [
    "AnotherTraining",
    "Run",
    "load_tensors",
    "open_run",
    "opened_once",
    "rows_chosen",
    "save_tensors",
    "store_facts",
    "whereabouts",
]

_ASIDE = ("made", "format", "unknown_ancestors")  # may differ between a run and its resumption, or follow from others


class AnotherTraining(UserError):
    """A run folder is that of another training; `lines`: what differs, one a field."""

    def __init__(self, path: Path, lines: Sequence[str]):
        super().__init__(f"{path} holds another training; choose another --out. " + "; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Run:
    """A run folder and what its run.json says."""

    path: Path
    facts: dict

    @property
    def kind(self) -> str:
        """head (of clips), sampler, retrieval, backbone, recogniser or detector."""
        return self.facts.get("kind", "head")

    @property
    def features(self) -> str:
        """frozen: trained on cached features; end-to-end: the network that makes them was trained too."""
        return self.facts.get("features") or ("end-to-end" if self.base else "frozen")

    @property
    def head_name(self) -> str:
        """The head's. Raises UserError for a base training that left a network and no head."""
        if "head" not in self.facts:
            raise UserError(
                f"{self.path} is a base training ({self.trained}), without a head; extract features with --weights"
                f" {self.path}, and train heads on them"
            )
        return self.facts["head"]["name"]

    @property
    def base(self) -> bool:
        """Whether a network was trained here (train-backbone, -recogniser, -detector)."""
        return self.kind in ("backbone", "recogniser", "detector")

    @property
    def roles(self) -> set[str]:
        """The stores that it can read: those it was trained on, and of a network that decoded its dataset's videos
        "frames" in their place."""
        return {*self.facts["stores"], *(["frames"] if self.kind == "backbone" else [])}

    @property
    def trained(self) -> str:
        """What was trained, for titles and messages."""
        names = [self.facts["network"]["name"]] if self.base else []
        return " with ".join([*names, *([self.facts["head"]["name"]] if "head" in self.facts else [])])

    @property
    def classes(self) -> dict[str, int]:
        return self.facts["dataset"]["classes"]

    def create_head(self):
        """A new head of this run's config, with its initial weights."""
        return create_head(self.head_name, **self.facts["head"]["config"])

    def best_checkpoint(self) -> tuple[dict, dict]:
        """(tensors, metadata) of the best epoch. Raises UserError if training never got that far."""
        if not (self.path / "best.safetensors").is_file():
            raise UserError(
                f"{self.path} has no best.safetensors: its training has not finished an epoch; run it again"
            )
        return load_tensors(self.path / "best.safetensors")

    def best_head(self):
        """(head with the best checkpoint, checkpoint's metadata), of a head trained on stores.

        Raises UserError as `best_checkpoint`, and of a base training: its checkpoint is a network's, with or without a
        head (`pipelines.backbone_runs` opens those).
        """
        head = self.create_head()
        if self.base:
            raise UserError(
                f"{self.path}: its {self.head_name} was trained together with {self.facts['network']['name']} and reads"
                " that network's maps, not stores"
            )
        tensors, metadata = self.best_checkpoint()
        head.load_state_dict(tensors)
        return head.eval(), metadata

    def prior(self) -> np.ndarray:
        """mu(verb, noun): (verbs, nouns) float64."""
        return np.load(self.path / "action_prior.npy", allow_pickle=False)

    def open_stores(self, moved: Mapping[str, object] | None = None) -> dict:
        """The stores it was trained on, by role; `moved`: {role: store or path} of those that lie elsewhere now, and
        "frames" of a run that decoded its videos.

        Raises UserError if one is gone or holds another recipe now.
        """
        moved = {role: store for role, store in (moved or {}).items() if store is not None}
        roles = dict.fromkeys([*self.facts["stores"], *moved])
        opened = opened_once({role: moved[role] if role in moved else self._place(role) for role in roles})
        for role, store in opened.items():
            self.check_store(role, store)
        return opened

    def _place(self, role: str) -> str:
        path = self.facts["stores"][role]["path"]
        if not is_url(path) and not Path(path).exists():
            raise UserError(
                f"{self.path}: its {role} store is not at {path} any more; say where it is now with"
                f" {self.moved_option(role)} (of evaluate, predict, fuse, plot and reproduce)"
            )
        return path

    def moved_option(self, role: str) -> str:
        """The option that says where the store of a role is now; experts are roles of anybody's naming."""
        return f"--store {role}=PATH" if self.kind == "retrieval" else f"--{role} PATH"

    def check_store(self, role: str, store) -> None:
        """Refuses a store whose recipe is not the one that this run was trained on, if it was trained on one."""
        if role not in self.roles:
            raise UserError(f"{self.path}: {self.trained} reads no {role} store")
        fact = self.facts["stores"].get(role)
        if fact is None:  # it was trained on videos
            return
        if store.manifest.recipe_hash != fact["recipe"]:
            mine = {"dataset": self.facts["dataset"]["name"], **fact["recipe_fields"]}
            its = {"dataset": store.manifest.dataset.get("name"), **store.manifest.recipe}
            lines = recipe_difference(mine, its, "trained on", "this store has")
            # All else follows from another network or dataset, and would hide it.
            telling = [line for line in lines if line.startswith(("dataset: ", "network.name: "))]
            raise UserError(
                f"{store.path} is not what {self.path} was trained on ({role}): " + "; ".join(telling or lines)
            )

    def metrics_path(self, split: str | None = None) -> Path:
        """The figures that its training ended with, or those of `evaluate` on a split."""
        return self.path / ("metrics.json" if split is None else f"metrics_{_in_names(split)}.json")

    def scores_path(self, split: str) -> Path:
        """What `predict` writes of a split where nobody says otherwise."""
        return self.path / f"scores_{_in_names(split)}.npz"

    def picture_path(self, kind: str, shown: str) -> Path:
        """`pictures/<kind>_<id>.png`: a picture of what has this id, which may have slashes."""
        return self.path / "pictures" / f"{kind}_{shown.replace('/', '_')}.png"

    def log(self) -> list[dict]:
        """log.csv as one dict an epoch, numbers as floats; empty cells are left out."""
        if not (self.path / "log.csv").is_file():
            return []
        with open(self.path / "log.csv", newline="") as lines:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]

    def write_csv(self, name: str, rows: Sequence[Mapping]) -> Path:
        """Rows as lines, in the file whose path is returned; a column that a row lacks stays empty there."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_durable(self.path / name, text.getvalue().encode())
        return self.path / name

    def write_json(self, name: str, value) -> None:
        write_durable(self.path / name, (json.dumps(value, indent=1) + "\n").encode())

    def write_prior(self, prior: np.ndarray) -> None:
        data = io.BytesIO()
        np.save(data, prior, allow_pickle=False)
        write_durable(self.path / "action_prior.npy", data.getvalue())


def open_run(path: str | Path) -> Run:
    """A run that `train_head` made. Raises UserError when there is none at `path`."""
    path = _named(path)
    try:
        facts = json.loads((path / "run.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is no run folder: it has no run.json") from None
    except ValueError as error:
        raise UserError(f"{path}/run.json is damaged ({error}); train again into a new folder") from None
    if facts.get("format") != 1:
        raise UserError(f"{path}/run.json has format {facts.get('format')!r}; this version reads format 1")
    return Run(path, facts)


def start_run(path: str | Path, facts: dict) -> tuple[Run, bool]:
    """Create a run folder, or open the one that is there for the same training: (run, it was there).

    Where the stores have moved since, run.json names their new places from then on. Raises UserError when another
    training lives there (the message lists the fields that differ) or the folder cannot be made.
    """
    path = _named(path)
    facts = json.loads(json.dumps({"format": 1, **facts}))
    with storage_errors(path):
        begun = (path / "run.json").is_file()
    if begun:
        there = open_run(path)
        lines = recipe_difference(_identity(_up_to_date(there.facts, facts)), _identity(facts))
        if lines:
            raise AnotherTraining(path, [line.replace("the store", "it") for line in lines])
        places = {role: {**fact, "path": facts["stores"][role]["path"]} for role, fact in there.facts["stores"].items()}
        run = Run(path, {**there.facts, "stores": places})
        if run.facts != there.facts:
            run.write_json("run.json", run.facts)
        return run, True
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    run = Run(path, facts)
    run.write_json("run.json", facts)
    return run, False


def _up_to_date(facts: dict, now: dict) -> dict:
    """Facts of a run with the default of every setting that `now` has and that run, from before it existed, lacks."""
    from pipelines.loop import Schedule

    filled = dict(facts)
    if "training" in facts:
        filled["training"] = _with_defaults(facts["training"], Schedule, now.get("training", {}))
    if "head" in facts and facts["head"]["name"] == now.get("head", {}).get("name"):
        config = _with_defaults(facts["head"]["config"], get_head(facts["head"]["name"]).Config, now["head"]["config"])
        filled["head"] = {**facts["head"], "config": config}
    return filled


def _with_defaults(settings: dict, config: type, now: dict) -> dict:
    known = {field.name: field.default for field in fields(config) if field.default is not MISSING}
    lacking = {name: value for name, value in known.items() if name in now and name not in settings}
    return json.loads(json.dumps(lacking)) | settings


def _named(path: str | Path) -> Path:
    """A folder's path with its name at the end, which `.` and `..` lack: lineage and neighbours go by it."""
    path = Path(path)
    return path.resolve() if path.name in ("", "..") else path


def _in_names(split: str) -> str:
    """A split (`1:test`) as file names have it: the colon is no letter of a name on every system."""
    return split.replace(":", "-")


def _identity(facts: dict) -> dict:
    stores = {role: {"recipe": fact["recipe"]} for role, fact in facts["stores"].items()}
    return {**{key: value for key, value in facts.items() if key not in _ASIDE}, "stores": stores}


def store_facts(store) -> dict:
    """How a run names a store: where it lay, its recipe, its seal, which rows it has, and whose weights made it."""
    manifest = store.manifest
    return {
        "path": whereabouts(store.path),
        "recipe": manifest.recipe_hash,
        "recipe_fields": manifest.recipe,
        "seal": manifest.seal,
        "rows": rows_chosen(store),
    }


def whereabouts(path: str | Path) -> str:
    """Where a store lies, wherever one stands: a URL as it is."""
    return str(path) if is_url(path) else str(Path(path).resolve())


def opened_once(stores: Mapping[str, object]) -> dict:
    """{role: open store} of stores and of paths; one that has two roles is opened, and later read, once."""
    by_path = {
        path: open_store(path)
        for path in dict.fromkeys(whereabouts(store) for store in stores.values() if isinstance(store, (str, Path)))
    }
    return {
        role: by_path[whereabouts(store)] if isinstance(store, (str, Path)) else store for role, store in stores.items()
    }


def rows_chosen(store) -> dict:
    """What decides beside the recipe which rows a store has: of what dataset, on what axis, which frames of it."""
    dataset = store.manifest.dataset
    return {name: dataset.get(name) for name in ("name", "family", "axis", "frames")}


def head_facts(name: str, config) -> dict:
    """How a run names a head: name, config, and for one's own file its hash."""
    facts = {"name": name, "config": asdict(config)}
    if name.startswith("py:"):
        get_head(name)  # says so if there is no such file
        path = name.removeprefix("py:").rpartition(":")[0]
        facts["file_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return facts


def save_tensors(path: Path, tensors: dict, metadata: dict) -> None:
    """Write tensors as safetensors with `metadata` (JSON) inside, whole or not at all."""
    from safetensors.torch import save

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_durable(path, save(flat, metadata={"clipbank": json.dumps(metadata)}))


def load_tensors(path: Path) -> tuple[dict, dict]:
    """(tensors, metadata) that `save_tensors` wrote. Raises UserError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["clipbank"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or not a clipbank checkpoint ({error})") from error
