"""Search: the clips that fit a text, or the captions that fit a clip, in two steps over an index.

First every row is scored approximately from what stays in memory (`pipelines.search_keys`); then the best few hundred
are read from the index and scored exactly, as `evaluate` scores them.
"""

from __future__ import annotations

import copy
import difflib
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from errors import UserError
from extract.datasets import load_dataset
from pipelines.devices import autocast, pick_device, to_device
from pipelines.find_stores import own_dataset
from pipelines.frame_reader import frames_of
from pipelines.known_weights import network_behind
from pipelines.pictures import FrameAt
from pipelines.request import some_of
from pipelines.retrieval_embeddings import CAPTIONS, VIDEOS, read_embeddings
from pipelines.retrieval_index import index_path, open_index, opened_stores
from pipelines.retrieval_model import trained_model
from pipelines.retrieval_training import TEXT
from pipelines.run_folder import Run, open_run
from pipelines.search_keys import Keys, make_keys
from stores import OK, Store

__all__ = ["LEAST_COMPARED", "Searcher", "compare"]

LEAST_COMPARED = 150  # rows that are scored exactly: recall@10 above 0.995 (benchmarks/search_speed.py)
PER_HIT = 15  # at least so many for each that is wanted

Embeddings = Mapping[str, torch.Tensor]


@dataclass
class Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str):
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


@contextmanager
def one_thread():
    """A dozen steps of a millisecond or less each: several threads would wait for each other longer than that, tens of
    milliseconds each time where the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(
    head,
    query: Embeddings,
    store: Store,
    keys: Keys,
    of: str,
    n: int,
    candidates: int | None = None,
    clock: Clock | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of an index, their scores), the n best for one query, best first.

    query: embeddings of one text, where the index is of VIDEOS; of one video, where it is of CAPTIONS. candidates:
    rows that are scored exactly [PER_HIT a hit, LEAST_COMPARED at least].
    """
    clock = clock or Clock()
    candidates = max(n, candidates or max(LEAST_COMPARED, PER_HIT * n))
    with clock.step("candidates"), torch.inference_mode(), one_thread():
        if of == VIDEOS:
            dots = {name: values[None] for name, values in keys.dots(head.text_parts(query)).items()}
            score = head.combined(dots, query, keys.short)[0]
        else:
            dots = {name: values[:, None] for name, values in keys.dots(head.video_parts(query)).items()}
            score = head.combined(dots, keys.short, query)[:, 0]
        best = torch.topk(score, min(candidates, len(score)), sorted=False).indices.numpy()
        rows = np.sort(keys.rows[best])
    with clock.step("re-scoring"), torch.inference_mode(), one_thread():
        found = read_embeddings(store, rows)
        exact = head.similarity(query, found)[0] if of == VIDEOS else head.similarity(found, query)[:, 0]
        order = np.argsort(-exact.numpy(), kind="stable")[:n]
    return rows[order], exact.numpy()[order]


class Searcher:
    """A run's best model with its indexes in memory; opened once, asked any number of times.

    run: of train-head t2vlad, mee, ce or global_only. index: of its videos [`retrieval_index.index_path`]; that of the
    captions lies beside it. stores: {"text": store} of token features that has moved since. weights: of the text
    network that made them, where it was not trained too.
    Raises UserError: no retrieval run, no index, one of another run or of other stores, weights that are not found;
    stores or weights that a search of this run, or of this kind, does not read.
    """

    def __init__(
        self,
        run: str | Path | Run,
        index: str | Path | None = None,
        *,
        of: str = VIDEOS,
        stores: Mapping[str, object] | None = None,
        weights: str | None = None,
        device: str | None = None,
        say: Callable[[str], object] = print,
    ):
        clock = Clock()
        with clock.step("loading"):
            self.run = run if isinstance(run, Run) else open_run(run)
            self.of, self.device = of, pick_device(device)
            self.videos = open_index(self.run, index)
            self._refuse_unread(stores, weights)
            self.store = self.videos
            if of == CAPTIONS:
                dataset = self.videos.manifest.dataset["name"]
                self.store = open_index(self.run, self._captions_index(index), CAPTIONS, dataset)
            model, network, _ = trained_model(self.run)
            self.head = copy.deepcopy(model.head)  # compares on the CPU, where the index is
            self.model = model.to(self.device)
            self.keys = make_keys(self.store, self.head, of, say)
            self.precision = self.run.facts["training"]["precision"]
            if of == VIDEOS:
                self._tokens = self._reader(network, stores, weights)
        self.loading_s = clock.seconds["loading"]

    def text(self, text: str, n: int = 10, candidates: int | None = None) -> dict:
        """The n clips that fit a text best, as plain data (see `_found`)."""
        if not text.strip():
            raise UserError('an empty query: say what is looked for, such as "a man cuts a potato"')
        clock = Clock()
        with clock.step("encoding"), torch.inference_mode(), autocast(self.device, self.precision):
            query = self.model.head.encode_text(self.model.tokens(to_device(self._tokens(text), self.device)))
            query = {name: value.cpu() for name, value in query.items()}
        facts = self._found(text, query, n, candidates, clock)
        experts = self.model.head.config.experts
        return {**facts, "weights": dict(zip(experts, query["weights"][0].tolist(), strict=True))}

    def video(self, name: str, n: int = 10, candidates: int | None = None) -> dict:
        """The n captions of the dataset that fit a clip, or a video of one clip, best."""
        clock = Clock()
        with clock.step("encoding"):
            row = self._row_of(name)
            query = read_embeddings(self.videos, np.array([row]))
        return {**self._found(name, query, n, candidates, clock), "own": self._place(self.videos, row)}

    # --- what is told ---

    def _found(self, query: str, embedded: Embeddings, n: int, candidates: int | None, clock: Clock) -> dict:
        """{"query", "run", "index", "of", "dataset", "indexed": rows looked through, "hits": [{"score", "clip",
        "video", "start_s", "stop_s" (None: to the end), "captions"}], "seconds": {"loading", "encoding", "candidates",
        "re-scoring"}}."""
        if n < 1:
            raise UserError(f"-n must be at least 1, got {n}")
        rows, scores = compare(self.head, embedded, self.store, self.keys, self.of, n, candidates, clock)
        hits = [{"score": float(s), **self._place(self.store, int(row))} for row, s in zip(rows, scores, strict=True)]
        return {
            "query": query,
            "run": str(self.run.path),
            "index": str(self.store.path),
            "of": self.of,
            "dataset": self.store.manifest.dataset["name"],
            "indexed": len(self.keys.rows),
            "hits": hits,
            "seconds": {"loading": self.loading_s, **clock.seconds},
        }

    def _place(self, store: Store, row: int) -> dict:
        """Which clip a row is of, and what the dataset says of it; of an index of captions the one of the row."""
        rows, told = store.rows, store.texts
        clip, captions = int(rows["clip"][row]), []
        name, stop = str(store.clips["id"][clip]), float(rows["stop_s"][row])
        if not np.isfinite(stop):
            stop = self._clip_ends.get(name, stop)
        if told is not None:
            captions = [str(text) for text in told["caption"][told["clip"] == clip]]
        if store.manifest.recipe["index"] == CAPTIONS:
            captions = [captions[int(rows["k"][row])]]
        return {
            "clip": name,
            "video": str(store.videos["name"][rows["video"][row]]),
            "start_s": float(rows["start_s"][row]),
            "stop_s": stop if np.isfinite(stop) else None,
            "captions": captions,
        }

    @cached_property
    def _clip_ends(self) -> dict[str, float]:
        """{clip id: seconds} of the indexed clips: a store of tokens does not know where a whole video ends."""
        rows = self.videos.rows
        ids = np.asarray(self.videos.clips["id"]).astype(object)[rows["clip"]]
        return dict(zip(ids.tolist(), rows["stop_s"].tolist(), strict=True))

    def frames(
        self, dataset: str | None = None, data: str | Path | None = None, videos: str | Path | None = None
    ) -> tuple[FrameAt | None, str]:
        """((video name, seconds) -> frame, "") of the indexed dataset, or (None, why there are no frames).

        dataset, data, videos: where it is now [the dataset that the index names].
        """
        facts = self.videos.manifest.dataset
        if dataset is None and not facts.get("family"):
            return None, f"the dataset is a CSV of your own: say {own_dataset(facts['name'])}"
        try:
            return frames_of(load_dataset(dataset or facts["name"], data_root=data, videos=videos)), ""
        except UserError as error:
            if dataset is not None:
                raise
            return None, str(error)

    # --- queries ---

    def _captions_index(self, index: str | Path | None) -> Path | None:
        """Where the index of captions lies: beside that of the videos."""
        if index is None:
            return None
        return Path(index).parent / index_path(self.run, Path(index).stem, CAPTIONS).name

    def _refuse_unread(self, stores: Mapping[str, object] | None, weights: str | None) -> None:
        """Refuses stores and weights where no text is read, or only by the network that the run trained."""
        given = [*(f"--store {role}" for role in stores or {}), *(["--weights"] if weights is not None else [])]
        if given and self.of == CAPTIONS:
            raise UserError(f"{' and '.join(given)}: a search for a clip's captions reads nothing but the indexes")
        if given and TEXT not in self.run.facts["stores"]:
            raise UserError(
                f"{' and '.join(given)}: {self.run.path} trained its text network too, so a text is read by that one"
                " and by nothing else"
            )

    def _reader(self, network, stores, weights: str | None) -> Callable[[str], dict[str, np.ndarray]]:
        """text -> what the model reads: ids of the network that it trained, or tokens as its store of them has them."""
        if network is not None:
            limit = network.spec.options["max_tokens"]

            def ids(text: str) -> dict[str, np.ndarray]:
                found = np.array(network.encode([text], limit)[0], np.int64)
                return {"ids": found, "mask": np.ones(found.shape, bool)}

            return ids
        store = opened_stores(self.run, [TEXT], stores, "a search by text")[TEXT]
        if "created_with" not in store.manifest.spec:
            raise UserError(f"{store.path} was imported: no network is known here that would read a typed text alike")
        frozen = network_behind(store, weights, beside=self.run.path.parent)
        frozen.keep = ("tokens", "n_tokens")
        precision = store.manifest.recipe["precision"]
        on_cpu = torch.device(self.device).type == "cpu"
        frozen.to(self.device, "fp32" if on_cpu and precision == "fp16" else precision)  # no CPU computes in fp16
        spec = store.manifest.arrays["tokens"]

        def tokens(text: str) -> dict[str, np.ndarray]:
            out = frozen.run({"texts": [text]})
            n = min(int(out["n_tokens"][0]), spec.row_shape[0])
            return {"tokens": out["tokens"][:, :n].astype(spec.dtype), "mask": np.ones((1, n), bool)}

        return tokens

    def _row_of(self, name: str) -> int:
        """The index's row of a clip id, or of a video (its name or file) that has one clip. Raises UserError."""
        store, rows = self.videos, self.videos.rows
        clips = np.asarray(store.clips["id"]).astype(object)[rows["clip"]]
        videos = np.asarray(store.videos["name"]).astype(object)[rows["video"]]
        found = np.flatnonzero(clips == name)
        if not len(found):
            found = np.flatnonzero((videos == name) | (videos == Path(name).stem))
        if len(found) > 1:
            raise UserError(f"--video {name} has {len(found)} clips: name one of {some_of(clips[found].tolist())}")
        if not len(found):
            known = list(dict.fromkeys([*clips.tolist(), *videos.tolist()]))
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:5]
            raise UserError(f"--video {name}: no clip or video of {store.path}; there is {', '.join(near)}")
        if store.status()[found[0]] != OK:
            raise UserError(f"--video {name}: no expert has anything of it, so nothing can be compared with it")
        return int(found[0])
