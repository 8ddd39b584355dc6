"""Heads: the small trainable networks of stage two. They see batches of cached features and nothing else.

A head is a class, built from one frozen config:

    class MyHead(torch.nn.Module):
        Config = MyConfig                      # frozen dataclass that validates itself; becomes head.config
        reads = {"verb": ("vector",), ...}     # role -> arrays of the store that plays it; an instance may have its own
        pictures = ("attention",)              # optional: what `plot` draws of it (pipelines.plotting.PICTURES)
        averages = True                        # optional: tested on evenly spaced clips (`extract --test-clips`)
        def __init__(self, config): ...
        @staticmethod
        def dims(shapes): ...                  # {role: {array: row shape}} -> the Config fields that follow from them
        def forward(self, batch): ...          # dict of outputs, logits under the label's name
        def loss(self, out, labels): ...       # scalar

`config.windows` ({list name: seconds}) and `config.boxes_per_frame` say which object lists it wants beside the clip.
`py:path/to/file.py:name` names a head in any file of one's own. Nothing here imports torch before a head is made.
"""

import importlib
import importlib.util
from pathlib import Path

from errors import UserError

__all__ = ["create_head", "get_head", "list_heads", "metrics", "register_head"]

# Where the heads of the house live, so that listing them costs no import of torch.
_MODULES = {
    "ce": "heads.ce",
    "global_only": "heads.global_only",
    "ipl": "heads.ipl",
    "mee": "heads.mee",
    "pooled_objects": "heads.pooled_objects",
    "psn": "heads.psn",
    "saoa": "heads.saoa",
    "scsampler": "heads.scsampler",
    "t2vlad": "heads.t2vlad",
    "whole_frame": "heads.whole_frame",
}
_HEADS: dict[str, type] = {}


def __getattr__(name: str):
    if name in ("layers", "metrics"):
        return importlib.import_module(f"heads.{name}")
    raise AttributeError(f"module 'heads' has no attribute {name!r}")


def register_head(name: str):
    """Class decorator: make a head known under `name`. Raises ValueError when the name is taken."""

    def register(head):
        home = _MODULES.get(name, head.__module__)
        if name in _HEADS or home != head.__module__:
            raise ValueError(f"a head named {name!r} is already registered (in {home})")
        _HEADS[name] = head
        return head

    return register


def list_heads() -> list[str]:
    """Names that `create_head` knows, sorted."""
    return sorted({*_MODULES, *_HEADS})


def get_head(name: str):
    """The head class called `name`, or the one that `py:FILE:NAME` points at. Raises UserError if there is none."""
    if name.startswith("py:"):
        return _from_file(name)
    if name not in _HEADS and name in _MODULES:
        importlib.import_module(_MODULES[name])
    if name not in _HEADS:
        raise UserError(f"no head is called {name!r}; known: {', '.join(list_heads())}, or py:FILE:NAME for one's own")
    return _HEADS[name]


def create_head(name: str, **dims):
    """Build a head: `create_head("saoa", verbs=125, nouns=352, channels=1024, object_channels=256)`.

    `dims` are the fields of its Config. Returns a torch module with `.config`. Raises UserError for an unknown head
    or a config that cannot be.
    """
    head = get_head(name)
    try:
        config = head.Config(**dims)
    except TypeError as error:
        raise UserError(f"head {name}: {error}") from error
    return head(config)


def _from_file(name: str):
    path, _, attribute = name.removeprefix("py:").rpartition(":")
    if not path or not attribute:
        raise UserError(f"{name}: write py:FILE:NAME, for example py:my_head.py:MyHead")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{name}: no file at {file}")
    spec = importlib.util.spec_from_file_location(f"clipbank_plugin_{file.stem}", file)
    if spec is None:
        raise UserError(f"{name}: {file} is no Python file (NAME.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file does, it is the user's to mend
        raise UserError(f"{name}: running {file} failed: {type(error).__name__}: {error}") from error
    head = getattr(module, attribute, None)
    lacking = [part for part in ("Config", "reads", "dims", "loss") if not hasattr(head, part)]
    if head is None or lacking:
        raise UserError(f"{name}: needs {', '.join(lacking) or attribute} (see the docstring of the package heads)")
    return head
