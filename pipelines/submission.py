"""Submission files of the EPIC challenges, from the scores of a run: zipped as their servers want them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from heads import metrics
from pipelines.evaluated_clips import ClipScorer
from pipelines.evaluation import Place, open_scorer
from pipelines.prediction import filled, fused_scores, fusion_shares
from pipelines.run_folder import Run, open_run
from pipelines.submission_rules import CHALLENGES, N_ACTIONS, SLS, SLS_LEVELS, Challenge, check_submission
from stores import write_durable

__all__ = ["Part", "annotated_ids", "checked_submission", "submit", "write_submission"]

_EPOCH = (1980, 1, 1, 0, 0, 0)  # of the files in the zip, so that equal scores give equal bytes
_COMPRESSION = 1  # digits do not shrink further
_DIGITS = 6  # significant, of a score
_CHUNK = 256  # segments whose JSON is made at once


@dataclass(frozen=True)
class Part:
    """Scores of the segments of one file of a submission."""

    ids: Sequence[str]
    verb: np.ndarray
    """(n, verbs) logits."""
    noun: np.ndarray
    """(n, nouns) logits."""


def submit(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    challenge: str | Challenge | None = None,
    weights: Sequence[float] | None = None,
    sls: Sequence[int] | None = None,
    actions: bool = True,
    stores: Mapping[str, object] | None = None,
    place: Place = Place(),  # noqa: B008  frozen
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Score the test segments of a challenge with a run, or with the late fusion of several, and write the file.

    Every segment of the test splits is in it: those without features, and those that the stores have no rows of, get
    the frequencies of the first run's training clips, and are listed.

    challenge: epic55 or epic100, or its rules [the runs' dataset]. weights: one a run, of the mean of softmax scores
    [all alike]. sls: the supervision levels (pretraining, training labels, training data) that EPIC-100 asks for.
    actions: write the 100 best actions, by eq. 3.14 with the first run's prior where the challenge ranks so
    (`Challenge.prior`); without them the server multiplies verb and noun. stores, place, device: as for `evaluate`.

    Returns {"file", "challenge", "runs", "segments": {file: n}, "filled": {file: [ids]}}. Raises UserError: runs of
    another dataset or other classes, and what `write_submission` raises.
    """
    opened = [open_run(run) for run in runs]
    rules = _rules_of(opened, challenge)
    _check_sls(rules, sls)
    shares = fusion_shares(weights, len(opened)) if len(opened) > 1 else None
    options = {"stores": stores, "place": place, "device": device, "allow_incomplete": True, "progress": progress}
    parts, filled_ids, prior = {}, {}, None
    for file, split in rules.files.items():
        scorers = [open_scorer(run, split, **options) for run in opened]
        _check_classes(opened, scorers, rules)
        table = scorers[0].clips.table
        ids = np.asarray(table["id"]).astype(object)[np.asarray(table["split"]) == split]
        scores = [_of_every_segment(ids, scorer) for scorer in scorers]
        scores, predicted = filled(scores[0] if shares is None else fused_scores(scores, shares), scorers[0].counts)
        parts[file] = Part([str(name) for name in ids], scores["verb"], scores["noun"])
        prior = scorers[0].prior if rules.prior else None
        filled_ids[file] = [str(name) for name in ids[~predicted]]
        if filled_ids[file]:
            lacking = f"{len(filled_ids[file])} of {len(ids)} segments had no prediction"
            say(f"{file}: {lacking} and are filled from the training prior")
    write_submission(out, rules, parts, prior=prior, sls=sls, actions=actions)
    return {
        "file": str(out),
        "challenge": rules.name,
        "runs": [str(run.path) for run in opened],
        "segments": {file: len(part.ids) for file, part in parts.items()},
        "filled": filled_ids,
    }


def _rules_of(runs: Sequence[Run], challenge: str | Challenge | None) -> Challenge:
    if not runs:
        raise UserError("no run to score the test segments with")
    if isinstance(challenge, Challenge):
        rules = challenge
    else:
        name = challenge or runs[0].facts["dataset"]["name"]
        if name not in CHALLENGES:
            raise UserError(f"{runs[0].path} is of {name}: there is no such challenge, only {', '.join(CHALLENGES)}")
        rules = CHALLENGES[name]
    for run in runs:
        if run.facts["dataset"]["name"] != rules.name:
            raise UserError(f"{run.path} is of {run.facts['dataset']['name']}, the challenge of {rules.name}")
    return rules


def _check_classes(runs: Sequence[Run], scorers: Sequence[ClipScorer], rules: Challenge) -> None:
    wanted = {"verb": rules.verbs, "noun": rules.nouns}
    for run, scorer in zip(runs, scorers, strict=True):
        if dict(scorer.classes) != wanted:
            raise UserError(f"{run.path} scores {dict(scorer.classes)}; the challenge {rules.name} wants {wanted}")


def _of_every_segment(ids: np.ndarray, scorer: ClipScorer) -> dict[str, np.ndarray]:
    """Scores in the order of all ids, NaN for those that were not scored."""
    place = {str(name): i for i, name in enumerate(ids)}
    known = np.array([str(name) in place for name in scorer.clips.ids], dtype=bool)
    at = np.array([place[str(name)] for name in scorer.clips.ids[known]], dtype=np.int64)
    out = {}
    for label, values in scorer.score().items():
        out[label] = np.full((len(ids), values.shape[1]), np.nan, np.float32)
        out[label][at] = values[known]
    return out


def write_submission(
    path: str | Path,
    challenge: str | Challenge,
    parts: Mapping[str, Part],
    *,
    prior: np.ndarray | None = None,
    sls: Sequence[int] | None = None,
    actions: bool = True,
) -> None:
    """Write a challenge's zip; the file is replaced whole or not at all.

    challenge: its name or its rules. parts: {file in the zip: Part}, all files of the challenge with all their
    segments. prior: mu (verbs, nouns) of eq. 3.14 for the actions' scores, of a challenge that ranks them with one
    [none: the product of the two softmaxes]. sls: three integers 0..5, for a challenge that asks for them.

    Raises UserError: files, segments, classes, levels or a prior that are not the challenge's, a score that is not
    finite.
    """
    rules = challenge if isinstance(challenge, Challenge) else CHALLENGES[challenge]
    _check_sls(rules, sls)
    if prior is not None and not rules.prior:
        raise UserError(f"the challenge {rules.name} ranks actions by the product of verb and noun, without a prior")
    if set(parts) != set(rules.files):
        raise UserError(f"{rules.name}: the files are {', '.join(rules.files)}, got {', '.join(parts) or 'none'}")
    for file, part in parts.items():
        _check_part(part, file, rules)
    head = {"version": rules.version, "challenge": "action_recognition"}
    head |= dict(zip(SLS, map(int, sls), strict=True)) if rules.sls else {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION) as archive:
        for file in rules.files:
            info = zipfile.ZipInfo(file, _EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as stream:
                stream.write((json.dumps(head)[:-1] + ', "results": {').encode())
                _write_results(stream, parts[file], prior, actions)
                stream.write(b"}}")
    write_durable(path, buffer.getvalue())


def annotated_ids(challenge: str, data: str | Path | None) -> dict[str, list[str]]:
    """{file in the zip: ids of its segments} by the challenge's annotations under a data root.

    Raises UserError: no data root, annotations missing.
    """
    from extract.datasets import load_dataset

    clips = load_dataset(challenge, data).clips
    return {file: clips["id"][clips["split"] == split].tolist() for file, split in CHALLENGES[challenge].files.items()}


def checked_submission(
    path: str | Path, challenge: str | None = None, data: str | Path | None = None, say: Callable[[str], None] = print
) -> dict:
    """`submission_rules.check_submission`, with the ids of the annotations where they are found.

    data: root of the datasets [CLIPBANK_DATA]. Without the challenge's annotations, `say` tells that ids are not
    checked. Returns what `check_submission` does.
    """

    def ids(name: str) -> dict[str, list[str]] | None:
        try:
            return annotated_ids(name, data)
        except UserError as error:
            say(f"the segments' ids are not checked: {error}")
            return None

    return check_submission(path, challenge, ids)


def _check_sls(rules: Challenge, sls: Sequence[int] | None) -> None:
    if not rules.sls and sls is not None:
        raise UserError(f"the challenge {rules.name} knows no supervision levels (--sls)")
    if rules.sls and (sls is None or len(sls) != len(SLS) or any(level not in SLS_LEVELS for level in sls)):
        raise UserError(
            f"the challenge {rules.name} asks for three supervision levels 0..{SLS_LEVELS[-1]}, of pretraining,"
            " training labels and training data: --sls PT TL TD, such as --sls 2 3 4 for Kinetics weights, segments"
            " with start and stop, train and val"
        )


def _check_part(part: Part, file: str, rules: Challenge) -> None:
    for name, scores, classes in (("verb", part.verb, rules.verbs), ("noun", part.noun, rules.nouns)):
        if np.shape(scores) != (len(part.ids), classes):
            raise UserError(
                f"{file}: {name} scores {np.shape(scores)} are not ({len(part.ids)} segments, {classes} classes)"
            )
        wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(wrong):
            raise UserError(
                f"{file}: {len(wrong)} segments have {name} scores that are no finite numbers: {part.ids[wrong[0]]} ..."
            )
    distinct = len(set(part.ids))
    if distinct != rules.segments[file] or len(part.ids) != distinct:
        raise UserError(
            f"{file}: {distinct} segments, but the challenge {rules.name} has {rules.segments[file]}; a submission"
            " holds every one, once"
        )


def _write_results(stream, part: Part, prior, actions: bool) -> None:
    """`"id": {"verb": {...}, "noun": {...}, "action": {...}}, ...`"""
    for start in range(0, len(part.ids), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        verb, noun = part.verb[chunk], part.noun[chunk]
        best = metrics.top_actions(verb, noun, N_ACTIONS, prior) if actions else None
        lines = []
        for i, name in enumerate(part.ids[chunk]):
            scores = {"verb": _by_class(verb[i]), "noun": _by_class(noun[i])}
            if best is not None:
                verbs, nouns, values = (column[i] for column in best)
                scores["action"] = {f"{v},{n}": _rounded(x) for v, n, x in zip(verbs, nouns, values, strict=True)}
            lines.append(f"{json.dumps(name)}: {json.dumps(scores)}")
        stream.write(((", " if start else "") + ", ".join(lines)).encode())


def _by_class(scores: np.ndarray) -> dict[str, float]:
    return {str(c): _rounded(x) for c, x in enumerate(scores)}


def _rounded(x: float) -> float:
    return float(f"{x:.{_DIGITS}g}")
