"""Pictures of cached features: a t-SNE map of the clips, coloured by their labels (van der Maaten and Hinton 2008)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from pipelines.pictures import COLOURS, class_name, pyplot, save_figure
from pipelines.run_folder import Run
from stores import ClipDataset

__all__ = ["feature_pictures", "tsne"]

MOST_CLIPS = 2000  # evenly spaced over the split: t-SNE takes a minute for so many
COLOURED = len(COLOURS)  # classes with a colour of their own, the most frequent; the rest is grey


def tsne(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n, C) -> (n, 2), scikit-learn's t-SNE, started from the first two principal components; n from 3 on.

    Raises UserError where scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("a t-SNE needs scikit-learn: pip install 'clipbank[demo]'") from None
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features.astype(np.float32))


def feature_pictures(
    run: Run, stores: Mapping[str, object], split: str, names: Mapping[str, Sequence[str]]
) -> list[Path]:
    """`<run>/pictures/features_<role>.png` of the clip stores that the run was trained on, coloured by the label of the
    role's name (verb, noun); a store of another role by its first label.

    Raises UserError: no store of clips' vectors, fewer than 3 clips with features and labels, no scikit-learn.
    """
    paths = []
    for role, store in stores.items():
        arrays = [name for name in ("vector", "map") if name in store.manifest.arrays]
        if not arrays or store.manifest.dataset.get("axis", "clip") != "clip":
            continue
        dataset = ClipDataset({role: store}, split, draws=(0,), arrays={role: arrays[:1]}, allow_incomplete=True)
        label = role if role in dataset.labels else next(iter(dataset.labels), None)
        if label is None:
            continue
        items = np.flatnonzero(dataset.ok & (dataset.labels[label] >= 0))
        if len(items) < 3:
            raise UserError(f"{store.path}: {len(items)} clips of split {split!r} have features and a {label}, not 3")
        items = items[np.unique(np.linspace(0, len(items) - 1, min(MOST_CLIPS, len(items))).astype(int))]
        values = dataset.batch(items)[role][arrays[0]].astype(np.float32)
        values = values.reshape(len(items), -1, values.shape[-1]).mean(axis=1)
        places, labels = tsne(values), dataset.labels[label][items]
        title = f"{Path(str(store.path)).stem}: {count_of(len(items), 'clip')} of {split}, by {label}"
        path = run.path / "pictures" / f"features_{role}.png"
        paths.append(_draw(path, places, labels, names.get(label) or (), title))
    if not paths:
        of_network = run.kind == "backbone"  # its features are not cached, but can be
        remedy = f"; extract its own with --weights {run.path}, and plot a head that was trained on them"
        raise UserError(
            f"{run.path}: it was trained on no store of clips' features, so there are none to show"
            + (remedy if of_network else "")
        )
    return paths


def _draw(path: Path, places: np.ndarray, labels: np.ndarray, names: Sequence[str], title: str) -> Path:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7.6, 5.8), layout="constrained")
    classes, counts = np.unique(labels, return_counts=True)
    frequent = classes[np.argsort(-counts, kind="stable")][:COLOURED]
    rest = ~np.isin(labels, frequent)
    if rest.any():
        others = count_of(len(classes) - len(frequent), "other")
        axis.scatter(*places[rest].T, s=9, color="#cccccc", linewidths=0, label=others)
    for value, colour in zip(frequent, COLOURS, strict=False):
        of_class = labels == value
        name = f"{class_name(names, value)} ({of_class.sum()})"
        axis.scatter(*places[of_class].T, s=11, color=colour, linewidths=0, label=name)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.8, frameon=False)
    return save_figure(figure, path)
