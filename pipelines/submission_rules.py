"""The published rules of the EPIC challenges' submission files, and a checker of them.

EPIC-KITCHENS-55: epic-kitchens/epic-kitchens-55-lib, docs/source/submission_format.md. EPIC-KITCHENS-100:
epic-kitchens/C1-Action-Recognition, and the validator of the challenges' evaluation code. The checker knows nothing of
what writes the files here (`pipelines.submission`).
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from errors import UserError

__all__ = ["CHALLENGES", "N_ACTIONS", "SLS", "Challenge", "check_submission", "read_submission"]

N_ACTIONS = 100  # scored actions of a segment, neither more nor fewer
SLS = ("sls_pt", "sls_tl", "sls_td")  # supervision levels: pretraining, training labels, training data
SLS_LEVELS = range(6)
SHOWN = 5  # examples of one kind of mistake


@dataclass(frozen=True)
class Challenge:
    """What a challenge's server wants of a recognition submission."""

    name: str  # also the dataset's
    version: str
    files: Mapping[str, str]  # {file in the zip: split of the dataset}
    segments: Mapping[str, int]  # {file: how many segments it is about}
    verbs: int
    nouns: int
    prior: bool  # whether actions are ranked with eq. 3.14's prior, else by the product of the two softmaxes alone
    sls: bool  # whether it asks for the supervision levels


CHALLENGES = {
    challenge.name: challenge
    for challenge in (
        Challenge(
            "epic55",
            "0.1",
            {"seen.json": "test_s1", "unseen.json": "test_s2"},
            {"seen.json": 8_047, "unseen.json": 2_929},
            125,
            352,
            prior=True,
            sls=False,
        ),
        Challenge("epic100", "0.2", {"test.json": "test"}, {"test.json": 13_092}, 97, 300, prior=False, sls=True),
    )
}


class _Scores:
    """An object of scores, checked while it is parsed: what is kept are its keys, and the first bad value."""

    __slots__ = ("bad", "keys", "repeated")

    def __init__(self, pairs: list):
        self.keys = frozenset(key for key, _ in pairs)
        self.repeated = len(pairs) - len(self.keys)
        self.bad = next((f"{key!r}: {value!r}" for key, value in pairs if not _is_score(value)), None)


class _Repeated(dict):
    """An object with a key that is there twice."""


def _is_score(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _object(pairs: list):
    scores = pairs and all(key[:1].isdigit() and not isinstance(value, (dict, _Scores)) for key, value in pairs)
    if scores:
        return _Scores(pairs)
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeated(found)


def read_submission(path: str | Path) -> dict[str, object]:
    """{file name: parsed JSON} of a zip, or of a single .json file under its own name.

    Raises UserError: no such file, neither zip nor JSON, damaged.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            return {path.name: json.loads(path.read_bytes(), object_pairs_hook=_object)}
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise UserError(f"{path}: {broken} in it is damaged; write it again")
            names = [info.filename for info in archive.infolist()]
            return {
                name: json.loads(archive.read(name), object_pairs_hook=_object) if name.endswith(".json") else None
                for name in names
            }
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not a submission, its JSON cannot be parsed: {error}") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def check_submission(
    path: str | Path,
    challenge: str | Challenge | None = None,
    ids_of: Callable[[str], Mapping[str, Iterable[str]] | None] = lambda challenge: None,
) -> dict:
    """What is wrong with a submission file by the published rules.

    challenge: epic55 or epic100, or its rules [told by the names of the files, or by their version].
    ids_of(challenge's name): {file in the zip: ids of all its segments}, as the annotations have them; None: only their
    number is checked. A single .json file is checked as that file of the zip whose name it has, or else whose ids it
    shares most.

    Returns {"challenge", "files": {name: segments}, "actions": whether actions are scored, "problems": [lines], empty
    if the server takes it}. Raises UserError: no such file or challenge, or nothing that could be parsed.
    """
    if isinstance(challenge, str) and challenge not in CHALLENGES:
        raise UserError(f"no challenge {challenge!r}; there are {', '.join(CHALLENGES)}")
    content = read_submission(path)
    rules = challenge if isinstance(challenge, Challenge) else CHALLENGES[challenge or _told_challenge(content)]
    ids = ids_of(rules.name)
    problems: list[str] = []
    if zipfile.is_zipfile(path):
        problems += [f"{name} is missing in the zip" for name in rules.files if name not in content]
        extra = [name for name in content if name not in rules.files]
        problems += [
            f"the zip holds {name!r}; only {', '.join(rules.files)} belong into it, in no folder" for name in extra
        ]
    else:
        ((name, parsed),) = content.items()
        content = {_told_file(name, parsed, rules, ids): parsed}
    counts, actions = {}, set()
    for name in rules.files:
        if name in content:
            segments, scored, found = _check_file(content[name], name, rules, None if ids is None else set(ids[name]))
            counts[name] = segments
            actions.add(scored)
            problems += [f"{name}: {line}" for line in found]
    return {"challenge": rules.name, "files": counts, "actions": actions == {True}, "problems": problems}


def _told_challenge(content: Mapping[str, object]) -> str:
    for rules in CHALLENGES.values():
        if set(content) & set(rules.files):
            return rules.name
    versions = {parsed.get("version") for parsed in content.values() if isinstance(parsed, dict)}
    for rules in CHALLENGES.values():
        if rules.version in versions:
            return rules.name
    wanted = "; ".join(f"{rules.name}: {', '.join(rules.files)}" for rules in CHALLENGES.values())
    raise UserError(f"which challenge? {', '.join(content)} is none of their files ({wanted})")


def _told_file(name: str, parsed, rules: Challenge, ids) -> str:
    if name in rules.files:
        return name
    results = parsed.get("results") if isinstance(parsed, dict) else None
    given = set(results) if isinstance(results, dict) else set()
    return max(rules.files, key=lambda file: len(given & set((ids or {}).get(file, ()))))


def _check_file(parsed, name: str, rules: Challenge, ids: set[str] | None) -> tuple[int, bool, list[str]]:
    """(segments, whether they have actions, problems) of one file."""
    if not isinstance(parsed, dict):
        return 0, False, ["is not a JSON object"]
    problems = ["a key is there twice"] if isinstance(parsed, _Repeated) else []
    wanted = {"version": rules.version, "challenge": "action_recognition"}
    problems += [
        f"{key} must be {value!r}, got {parsed.get(key)!r}" for key, value in wanted.items() if parsed.get(key) != value
    ]
    for key in SLS if rules.sls else ():
        if type(parsed.get(key)) is not int or parsed[key] not in SLS_LEVELS:
            problems.append(f"{key} must be an integer 0..{SLS_LEVELS[-1]}, got {parsed.get(key)!r}")
    known = {*wanted, *(SLS if rules.sls else ()), "results"}
    problems += [f"unexpected key {key!r}" for key in parsed if key not in known]
    results = parsed.get("results")
    if not isinstance(results, dict):
        return 0, False, [*problems, "results must be an object {segment: scores}"]
    if isinstance(results, _Repeated):
        problems.append("results: a segment is there twice")
    if ids is None and len(results) != rules.segments[name]:
        problems.append(f"{len(results)} segments, the challenge has {rules.segments[name]}")
    if ids is not None:
        problems += _some("segments are missing", sorted(ids - set(results)))
        problems += _some("segments do not belong to the challenge", sorted(set(results) - ids))
    return len(results), *_check_segments(results, rules, problems)


def _check_segments(results: dict, rules: Challenge, problems: list[str]) -> tuple[bool, list[str]]:
    """(whether segments have actions, problems) of the scores."""
    classes = {name: frozenset(map(str, range(n))) for name, n in (("verb", rules.verbs), ("noun", rules.nouns))}
    found: dict[str, list[str]] = {}
    with_actions = 0

    def add(kind: str, segment: str, detail: str = "") -> None:
        found.setdefault(kind, []).append(f"{segment}{f' ({detail})' if detail else ''}")

    for segment, of in results.items():
        if not isinstance(of, dict):
            add("segments are not objects of verb and noun", segment)
            continue
        for key in of:
            if key not in ("verb", "noun", "action"):
                add("segments have an unexpected key", segment, repr(key))
        for name, keys in classes.items():
            scores = of.get(name)
            if not isinstance(scores, _Scores):
                add(f"segments lack the {name} scores", segment)
                continue
            if scores.keys != keys or scores.repeated:
                lost, extra = sorted(keys - scores.keys, key=int), sorted(scores.keys - keys)
                detail = f"missing {', '.join(lost[:3])}" if lost else f"unexpected {', '.join(extra[:3])}"
                add(
                    f"segments have other {name} classes than 0..{len(keys) - 1}",
                    segment,
                    detail if lost or extra else "twice",
                )
            if scores.bad:
                add(f"{name} scores are no finite numbers", segment, scores.bad)
        if "action" in of:
            with_actions += 1
            _check_actions(of["action"], segment, rules, add)
    without = [segment for segment, of in results.items() if isinstance(of, dict) and "action" not in of]
    if with_actions and without:
        found["segments lack action scores that others have"] = without
    for kind, segments in found.items():
        problems += _some(kind, segments)
    return with_actions > 0, problems


def _check_actions(scores, segment: str, rules: Challenge, add) -> None:
    if not isinstance(scores, _Scores):
        add(f"segments have other than {N_ACTIONS} actions", segment, "none")
        return
    if len(scores.keys) != N_ACTIONS or scores.repeated:
        add(f"segments have other than {N_ACTIONS} actions", segment, str(len(scores.keys)))
    for key in scores.keys:
        match = re.fullmatch(r"(0|[1-9]\d*),(0|[1-9]\d*)", key)
        if match is None or int(match[1]) >= rules.verbs or int(match[2]) >= rules.nouns:
            add('actions are not "verb,noun" of classes', segment, repr(key))
            break
    if scores.bad:
        add("action scores are no finite numbers", segment, scores.bad)


def _some(what: str, segments: list[str]) -> list[str]:
    more = f" and {len(segments) - SHOWN} more" if len(segments) > SHOWN else ""
    return [f"{len(segments)} {what}: {', '.join(segments[:SHOWN])}{more}"] if segments else []
