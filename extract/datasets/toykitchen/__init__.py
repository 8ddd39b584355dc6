"""Toy kitchen: the embedded dataset, made on the spot from a seed, without downloads.

`load_dataset("toykitchen")` makes it under the data root if it is not there; `toykitchen:distractors=4,camera=0` is a
variant of its own (dials.py lists the dials). Real handwritten digits are the objects (nouns), one of them handled by
a hand in one of six ways (verbs). It goes the whole real path: MP4 files with sound, EPIC-style CSVs on a 60 fps grid.
Names are re-exported lazily (PEP 562).
"""

from importlib import import_module
from pathlib import Path

from errors import UserError
from extract.datasets.base import Dataset
from extract.datasets.registry import register_dataset

_HOME = {
    "Dials": "dials",
    "dials_from": "dials",
    "make_toykitchen": "make",
    "read_counter": "counter",
    "write_script": "script",
}
__all__ = [*sorted(_HOME), "make_variant", "toykitchen"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


@register_dataset("toykitchen")
def toykitchen(data_root: Path | None, media: str = "rgb", **dials) -> Dataset:
    """Load toy kitchen, or the variant that `dials` describe, making it first if needed (told on stderr).

    The dataset is named after its folder, so that every variant has features of its own. `texts` are the captions,
    `events` the untrimmed videos' actions (label: verb), `boxes` the objects' (class: noun; score 1), and
    `facts["gaze"]` the path of gaze.csv relative to the root.

    Raises:
        UserError: no data root, an unknown dial or value, `media` other than "rgb".
        MachineError: the data root cannot be written.
    """
    from extract.datasets.toykitchen.dials import dials_from
    from extract.datasets.toykitchen.read import read_toykitchen

    return read_toykitchen(make_variant(data_root, media, dials_from(dials)))


def make_variant(data_root: Path | None, media: str, dials) -> Path:
    """The folder of the variant with these `Dials` under the data root, made first if needed (told on stderr).

    Raises:
        UserError: no data root, `media` other than "rgb".
        MachineError: the data root cannot be written.
    """
    from extract.datasets.toykitchen.make import make_toykitchen

    if media != "rgb":
        raise UserError(f"toykitchen has video files only, no {media} frames")
    if data_root is None:
        raise UserError("toykitchen needs a data root to be made under: give --data DIR or set CLIPBANK_DATA")
    return make_toykitchen(data_root, dials, progress=_tell)


def _tell(done: int, total: int) -> None:
    """Progress on stderr: a line at the start, at every quarter and at the end."""
    import click

    if done in {total * quarter // 4 for quarter in range(5)}:
        click.echo(f"making toykitchen: {done}/{total} videos", err=True)
