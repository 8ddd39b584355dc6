"""Figures of a sampler: what a recogniser says of videos from the frames that it picks, and that others pick, at what
cost (thesis sections 5.2.4 and 5.3)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from errors import UserError, count_of
from heads import metrics
from pipelines.cost import VideoCost, head_cost, network_cost, random_network
from pipelines.devices import pick_device
from pipelines.evaluation import check_lineage, write_figures
from pipelines.labelled_clips import ClipSource, SplitOf, clip_source, source_of
from pipelines.needed_arrays import array_of
from pipelines.provenance import run_facts
from pipelines.recogniser_clips import FrameInputs, Targets, VectorInputs, targets_of
from pipelines.run_folder import Run
from pipelines.sampler_clips import Candidates, SharedFrames
from stores import Store, prefetch
from stores.joining import same_dataset

__all__ = [
    "FIGURES",
    "RANDOM_DRAWS",
    "Opened",
    "cached_inputs",
    "calibrate_run",
    "clips_of",
    "costs",
    "evaluate_sampler",
    "figures",
    "kept_thresholds",
    "margins",
    "method_rows",
    "open_sampler",
    "picked_logits",
    "scorer",
    "see",
    "thresholds_of",
    "video_costs",
]

FIGURES = ("top1", "top5", "mAP", "mAP_first_label")
ADAPTIVE = "adaptive.json"
RANDOM_DRAWS = 5  # of the random baseline, whose figures are averaged
_CLIPS_AT_ONCE = 16  # shown to the model
_VIDEOS_AT_ONCE = 1024  # whose logits are added up
_MARGINS = (1, 2, 4, 6, 8, 10, 15, 20, 25)


def margins(frames: int, sampled: int) -> list[int]:
    """The M that curves are drawn over, of N = `frames` candidates; the run's own M is one."""
    return sorted({m for m in (*_MARGINS, sampled, frames) if m <= frames})


def see(model, candidates: Candidates, which: np.ndarray, *, device: str, precision: str = "fp32"):
    """Clips `which` that have frames, shown to the model: (`sampler_model.Seen`, (V,) their places in `which`)."""
    from pipelines.sampler_model import observe

    there = np.flatnonzero(candidates.shared.usable[which])
    parts = [which[there[i : i + _CLIPS_AT_ONCE]] for i in range(0, len(there), _CLIPS_AT_ONCE)]
    return observe(model, prefetch(candidates, parts), device=device, precision=precision), there


def method_rows(
    seen,
    head,
    score: Callable[[np.ndarray], Mapping[str, float]],
    ms: Iterable[int],
    *,
    name: str,
    seed: int = 0,
    draws: int = RANDOM_DRAWS,
    thresholds: Mapping[int, float] | None = None,
    cost: Mapping[str, VideoCost] | None = None,
) -> list[dict]:
    """Figures of every way to pick frames, at every M.

    uniform; random (the mean over `draws`); dense (all candidates, whatever M: one row); the head's own, called by
    `name`: psn (top-M, weighted), scsampler (top-M, averaged); of psn, sampling only (top-M, averaged), and weighting
    only where nothing is left out (a head with frames = sampled, at that M); adaptive, as the head's own with M frames
    on average.

    Args:
        seen: `sampler_model.Seen` of V videos.
        head: the head that scored them.
        score: (V, classes) float32 logits -> {name: figure}.
        ms: M, each of 1 to N.
        name: what the head's own way is called.
        thresholds: of `heads.frame_sampling.adaptive_m` by M; None: no adaptive rows.
        cost: {"gflops": VideoCost, "seconds": VideoCost} with the costs of a frame; None: not known.

    Returns rows {"method", "m", the figures, "frames": what the recogniser saw on average, "gflops", "gflops_sampler",
    "gflops_context", "gflops_recogniser", "seconds" ...}.
    """
    looked = float(seen.mask.sum(dim=1).float().mean())
    rows = []
    for m in ms:
        threshold = (thresholds or {}).get(m)
        for method, learned, weighted, over, ways in _picks(seen, head, name, m, seed, draws, threshold):
            found = [
                {
                    **score(_video_logits(seen, picked, head, weighted, over)),
                    "frames": float(picked.sum(dim=1).float().mean()),
                }
                for picked in ways
            ]
            row = {"method": method, "m": m} | {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            for unit, of in (cost or {}).items():
                of = dataclasses.replace(of, candidates=looked) if learned else VideoCost(of.recogniser)
                row[unit] = of.total(row["frames"])
                row |= {f"{unit}_{part}": value for part, value in of.parts(row["frames"]).items()}
            rows.append(row)
    return rows


def _picks(seen, head, name: str, m: int, seed: int, draws: int, threshold: float | None) -> Iterator[tuple]:
    """Of every method its name, whether a sampler looked first, whether scores weigh the logits, what sums of logits
    are divided by (None: the number of frames picked), and [picked (V, N) bool] by draw."""
    import torch

    from heads import frame_sampling as fs

    mask, scores, config, n = seen.mask, seen.scores, head.config, seen.mask.shape[1]
    generator = torch.Generator().manual_seed(seed)  # the same for every M: more frames are the fewer ones and others
    if m == n:
        yield "dense", False, False, None, [fs.dense(mask)]
        draws = 1  # all of which would be every frame
    yield "uniform", False, False, None, [fs.uniform(mask, m)]
    yield "random", False, False, None, [fs.random_frames(mask, m, generator) for _ in range(draws)]
    top = fs.select(scores, m, mask)
    if head.weighting:
        yield "sampling only", True, False, None, [top]
    whole = head.weighting and config.sampled == config.frames == m
    yield "weighting only" if whole else name, True, head.weighting, None, [top]
    if threshold is not None:
        own = fs.adaptive_m(scores, mask, threshold)
        # Divided by M, as with M frames each: by their own numbers, those of whom little was seen would seem surest.
        yield "adaptive", True, head.weighting, m, [fs.select(scores, own, mask)]


def _video_logits(seen, picked, head, weighted: bool, over: int | None = None) -> np.ndarray:
    """(V, classes) float32; where frames are not weighted, their mean."""
    from heads.frame_sampling import video_logits

    aggregate = head.config.aggregate if weighted else "mean"
    weights = seen.scores if weighted else seen.scores.new_ones(seen.scores.shape)
    parts = [slice(i, i + _VIDEOS_AT_ONCE) for i in range(0, len(picked), _VIDEOS_AT_ONCE)]
    return np.concatenate([video_logits(seen.logits[p], weights[p], picked[p], aggregate, over).numpy() for p in parts])


def picked_logits(seen, head, m):
    """(logits (V, classes) float32, picked (V, N) bool) of the head's own way with m frames, one number or (V,)."""
    from heads.frame_sampling import select

    picked = select(seen.scores, m, seen.mask)
    return _video_logits(seen, picked, head, head.weighting), picked


def scorer(targets: Targets, which: np.ndarray, there: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """Figures of clips `which` by logits (V, classes) of those at places `there`; the others count as wrong.

    {"top1", "top5", "mAP"}; with several labels a clip {"top1" (of the first label), "mAP", "mAP_first_label"}.
    """

    def score(logits: np.ndarray) -> dict[str, float]:
        scores = np.full((len(which), targets.classes), np.nan, np.float32)
        scores[there] = logits
        found = targets.figures(scores, which)[targets.name]
        if targets.multi:
            found = {"top1": metrics.topk_accuracy(scores, targets.labels[which, 0])[0], **found}
        return found

    return score


def figures(
    model, candidates: Candidates, which: np.ndarray, *, name: str, device: str, precision: str, seed: int
) -> dict:
    """How well the recogniser names clips `which` from the M frames that the model's head picks.

    Returns {target: the figures of `scorer`, "clips", "coverage", "frames": how many the recogniser saw on average,
    "baselines": {"uniform", "random" (M frames too), "dense" (all candidates): the same figures and "frames"}}.
    """
    seen, there = see(model, candidates, which, device=device, precision=precision)
    head, config = model.head, model.head.config
    score = scorer(candidates.targets, which, there)
    rows = method_rows(seen, head, score, sorted({config.sampled, config.frames}), name=name, seed=seed)
    return {**_at_margin(rows, candidates.targets.name, config), **_coverage(which, there)}


def _at_margin(rows: Sequence[Mapping], target: str, config) -> dict:
    """What rows say at the head's own M: {target: the head's figures, "frames", "baselines": {method: figures}}."""
    keys = [key for key in rows[0] if key in FIGURES]
    own, base = {}, {}
    for row in rows:
        found = {key: row[key] for key in (*keys, "frames")}
        if row["method"] == "dense" or (row["m"] == config.sampled and row["method"] in ("uniform", "random")):
            base[row["method"]] = found
        elif row["m"] == config.sampled and row["method"] not in ("sampling only", "adaptive"):
            own = found
    frames = own.pop("frames")
    return {target: own, "frames": frames, "baselines": base}


def _coverage(which: np.ndarray, there: np.ndarray) -> dict:
    return {"clips": len(which), "coverage": len(there) / len(which)}


# --- of a run ---


@dataclass(frozen=True)
class Opened:
    """A sampler run's best model and what it can be shown."""

    run: Run
    model: object  # CachedSampler | JointSampler
    epoch: int
    stores: Mapping[str, Store]
    source: ClipSource
    candidates: Candidates
    device: str


def open_sampler(run: Run, stores: Mapping[str, object] | None = None, device: str | None = None) -> Opened:
    """The best model of a run that `train_sampler` or `train_joint_sampler` made, with its stores.

    Raises:
        UserError: a store that is gone or of another recipe, stores of different datasets, a run without a finished
            epoch.
    """
    from pipelines.sampler_model import load_sampler

    opened, device = run.open_stores(stores), pick_device(device)
    same_dataset(opened)
    model, metadata = load_sampler(run, device)
    ((target, classes),) = run.facts["targets"].items()
    if run.facts["features"] == "frozen":
        source, inputs = cached_inputs(opened["sampler"])
    else:
        source = clip_source("rgb_frame", dataset=None, frames=opened["frames"])
        resize = run.facts["network"]["resize"]
        inputs = FrameInputs(source.frames, resize.get("crop") or resize["size"], None, run.facts["seed"])
    shown = opened["sampler" if "sampler" in opened else "frames"]
    targets = dataclasses.replace(targets_of(source, shown, target, run.facts["fit"]), classes=classes)
    shared = SharedFrames(shown, opened["recogniser"], source.clips)
    candidates = Candidates(shared, inputs, targets, model.head.config.frames, run.facts["seed"])
    return Opened(run, model, metadata["epoch"], opened, source, candidates, device)


def clips_of(opened: Opened, split: str, *, allow_incomplete: bool = False, allow_seen: bool = False) -> np.ndarray:
    """Numbers of the clips of a split, of which figures mean something.

    Raises:
        UserError: clips without labels, or none with frames; frames still pending, unless `allow_incomplete`; clips
            that this sampler, its networks or its recogniser were trained on, unless `allow_seen`.
    """
    candidates = opened.candidates
    which = opened.source.split(split)
    unlabelled = int((~candidates.targets.known[which]).sum())
    if unlabelled:
        clips = count_of(unlabelled, "clip")
        raise UserError(f"split {split!r} has {clips} without {candidates.targets.name} labels: no figures")
    if not candidates.shared.usable[which].any():
        raise UserError(f"{opened.source.where}: no clip of split {split!r} has frames in both stores: no figures")
    if not allow_incomplete:
        candidates.shared.check_pending(which)
    check_lineage(opened.run, SplitOf(opened.source, which), split, allow_seen)
    return which


def evaluate_sampler(
    run: Run,
    split: str = "val",
    *,
    stores: Mapping[str, object] | None = None,
    place=None,
    device: str | None = None,
    allow_incomplete: bool = False,
    allow_seen: bool = False,
    progress: bool = True,
) -> dict:
    """`pipelines.evaluate` of a run that `train_sampler` or `train_joint_sampler` made, which reads its stores alone,
    whatever the `place` of its dataset.

    Returns what `figures` returns, with split, epoch, unknown_ancestors, "methods": the rows of `method_rows` at the
    `margins`, "cost": what `costs` returns, "written": the paths of the table and the picture of them, as text. The
    split's figures are written too (`Run.metrics_path`).
    """
    from pipelines.sampler_pictures import accuracy_cost

    opened = open_sampler(run, stores, device)
    which = clips_of(opened, split, allow_incomplete=allow_incomplete, allow_seen=allow_seen)
    head, candidates = opened.model.head, opened.candidates
    seen, there = see(opened.model, candidates, which, device=opened.device)
    cost = costs(opened)
    rows = method_rows(
        seen,
        head,
        scorer(candidates.targets, which, there),
        margins(head.config.frames, head.config.sampled),
        name=run.head_name,
        seed=run.facts["seed"],
        thresholds=thresholds_of(opened),
        cost=video_costs(cost),
    )
    found = {
        **_at_margin(rows, candidates.targets.name, head.config),
        **_coverage(which, there),
        "methods": rows,
        "cost": cost,
    }
    result = write_figures(run, split, opened.epoch, found)
    return result | {"written": [str(run.write_csv("accuracy_cost.csv", rows)), str(accuracy_cost(run, result))]}


def cached_inputs(store: Store) -> tuple[ClipSource, VectorInputs]:
    """The clips of a store of features, and the features."""
    array_of(store, "vector")
    return source_of(store), VectorInputs(store)


# --- an adaptive M ---


def calibrate_run(run: Run, model, candidates: Candidates, which: np.ndarray, device: str) -> dict[int, float]:
    """By M, the threshold of `heads.frame_sampling.adaptive_m` with which as many frames of clips `which` are picked in
    all as with M frames each, from their scores alone; written to `<run>/adaptive.json`."""
    from heads.frame_sampling import calibrate

    seen, _ = see(model, candidates, which, device=device)
    there = seen.mask.sum(dim=1)
    found = {
        m: calibrate(seen.scores, seen.mask, float(there.clamp(max=m).double().mean()))
        for m in range(1, model.head.config.frames + 1)
    }
    run.write_json(ADAPTIVE, {"clips": len(which), "thresholds": found})
    return found


def kept_thresholds(run: Run) -> dict[int, float]:
    """What `calibrate_run` wrote; {} where the run has none yet."""
    path = run.path / ADAPTIVE
    if not path.is_file():
        return {}
    return {int(m): value for m, value in json.loads(path.read_bytes())["thresholds"].items()}


def thresholds_of(opened: Opened) -> dict[int, float]:
    """A run's thresholds by M; found anew on the clips it was trained on where the run has none yet."""
    if kept := kept_thresholds(opened.run):
        return kept
    which = opened.source.split(opened.run.facts["fit"])
    return calibrate_run(opened.run, opened.model, opened.candidates, which, opened.device)


# --- what it costs ---


def costs(opened: Opened) -> dict:
    """Of a run's networks: {"sampler" and "recogniser" (of a frame), "context" (of a video): {"gflops", "seconds"}, or
    None where a store does not say which network made it; "device", "cpu", "cores"}.

    Counted and timed now, the light network with N frames at once, the heavy one with M.
    """
    config, device = opened.model.head.config, opened.device
    joint = getattr(opened.model, "network", None)
    light = joint or _network_of(opened.stores["sampler"], "vector", device)
    found = {
        "sampler": light and network_cost(light, config.frames),
        "context": head_cost(opened.model.head, device),
    }
    heavy = _network_of(opened.stores["recogniser"], "logits", device)
    found["recogniser"] = heavy and network_cost(heavy, config.sampled)
    facts = run_facts(device)
    return {part: cost and dataclasses.asdict(cost) for part, cost in found.items()} | {
        name: facts[name] for name in ("device", "cpu", "cores")
    }


def video_costs(cost: Mapping) -> dict[str, VideoCost] | None:
    """{"gflops", "seconds": VideoCost} of what `costs` returns; None where a part is not known."""
    parts = ("recogniser", "sampler", "context")
    if any(cost[part] is None for part in parts):
        return None
    return {unit: VideoCost(**{part: cost[part][unit] for part in parts}) for unit in ("gflops", "seconds")}


def _network_of(store: Store, array: str, device: str):
    """The network that made a store, with weights of no meaning; None where the store does not say."""
    made = store.manifest.spec.get("created_with")
    if made is None:
        return None
    network = random_network(made["name"], made["options"])
    network.keep = (array if array in network.spec.outputs else "vector",)  # a classifier apart costs next to nothing
    return network.to(device)
