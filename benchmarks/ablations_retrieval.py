"""T2VLAD's ablations on toy kitchen's captions: which relations of the thesis's tables 6.4 to 6.6 hold, by seeds.

    python benchmarks/ablations_retrieval.py [--seeds 0 1 2 3 4 5 6 7 8 9] [--root DIR] [--write docs/ablations.md]

Features are made once: three experts (whole frames and the dataset's boxes by EfficientNet-Lite0's ImageNet weights,
motion by a small3d that was trained on the training kitchens' verbs) and the captions' tokens by MiniLM. Then, a seed
at a time, every row of the tables, and MEE and CE beside them, is trained on them with the same batches and budget.
All are `frozen`: the thesis trains its text network too. Training is on `train`, the last epoch counts, and figures
are of `val`, other kitchens and other digits, on which nothing is chosen.

A caption may be true of other clips than its own: "a hand takes the six" of all in which that happens, whatever their
own captions say. Pairs that fit without being each other's own are left out of the ranking, neither right nor wrong;
training takes them for wrong, as it would on any dataset.

Prints Markdown and keeps the figures in ROOT/ablations_retrieval.json: a killed run goes on with what it lacks. Shows,
asserts nothing (exit 0).
"""

import dataclasses
import functools
import itertools
import json
import shutil
import sys
import time
import warnings
from pathlib import Path
from statistics import fmean

from ablation_table import Relation, arguments, relation, sections, write_section
from ablations_egocentric import Bench, check_frozen, dials_of, extracted, features, objects, spread
from machine import machine_line
from measuring import work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TITLE = "Text-video retrieval: T2VLAD (thesis chapter 6)"
KITCHEN = "toykitchen"
FRAME_HOP, FRAME_SIDE = 0.5, 128  # seconds from one whole frame to the next; pixels, squashed

# Chosen within the training kitchens (P10 to P12 after training on P01 to P09), on the full model alone, before any two
# rows were compared.
BUDGET = {"epochs": 20, "lr": 3e-3, "width": 128}

FULL = "full model"
ROWS = {  # name: head, settings
    FULL: ("t2vlad", {}),
    "w/o local": ("t2vlad", {"local": False}),
    "only text VLAD": ("t2vlad", {"vlad": "text"}),
    "two separate VLAD": ("t2vlad", {"vlad": "separate"}),
    "w/o visual attention": ("t2vlad", {"self_attention": False}),
    "MEE": ("mee", {}),
    "CE": ("ce", {}),
}
AT_TEST = {"w/o global at test": "local", "w/o local at test": "global"}  # the full model, scored otherwise

RECALLS = tuple(f"{way} R@{k}" for way in ("t2v", "v2t") for k in (1, 5, 10))
MAIN = "mean recall"  # of these six
METRICS = (MAIN, *RECALLS, "t2v MdR", "v2t MdR")

PRINTED = {  # MSR-VTT 1k-A, in the thesis's words: R@1, R@5, R@10, MdR of t2v, then of v2t
    FULL: (29.5, 59.0, 70.1, 4, 31.8, 60.0, 71.1, 3),
    "w/o global at test": (24.3, 51.5, 63.4, 5, 26.6, 52.9, 62.6, 5),
    "w/o local": (22.2, 49.9, 64.6, 6, 24.0, 51.7, 65.6, 5),
    "only text VLAD": (27.4, 57.3, 68.2, 4, 27.5, 57.4, 69.7, 4),
    "two separate VLAD": (28.6, 58.1, 70.4, 4, 30.4, 60.7, 72.1, 3),
    "w/o visual attention": (26.8, 58.3, 70.7, 4, 31.3, 60.5, 71.2, 3),
}
TABLES = {
    "6.4, global and local alignment": (FULL, "w/o global at test", "w/o local"),
    "6.5, VLAD encoding": (FULL, "two separate VLAD", "only text VLAD"),
    "6.6, visual attention": (FULL, "w/o visual attention"),
}
ENTITIES = (1, 2, 3)  # objects that a caption names
WITHOUT_LOCAL = ("w/o local", "w/o local at test", "MEE")  # what the local part's gain is taken over


# --- features ---


def stores_of(chain) -> dict[str, Path]:
    """{role: store}: the text's tokens, then the experts; made first where they are not there."""
    squash = json.dumps({"mode": "squash", "size": FRAME_SIDE})
    return {
        "text": extracted(chain, "minilm", keep=("tokens", "n_tokens")),
        "rgb": extracted(
            chain, "efficientnet_lite0", name="rgb", axis="frame", hop=FRAME_HOP, keep=("vector",),
            option=(f"resize={squash}",),
        ),
        "motion": features(chain, "verb", "rgb"),
        "objects": objects(chain),
    }  # fmt: skip


# --- a row ---


def trained(chain, stores: dict[str, Path], row: str, seed: int) -> Path:
    """The run of a row, trained on the `train` clips."""
    from pipelines import train_head

    head, settings = ROWS[row]
    return train_head(
        head, text=stores["text"], experts={role: path for role, path in stores.items() if role != "text"},
        set={**BUDGET, **settings}, seed=seed, out=folder_of(chain, seed) / row.replace("/", ""), progress=False,
        say=lambda line: None,
    )  # fmt: skip


def folder_of(chain, seed: int) -> Path:
    """Of what a seed makes; it can be made again from the features."""
    return chain.out / "runs" / f"retrieval-s{seed}"


def figures_of(run: Path, row: str) -> dict[str, float]:
    """{"row: metric": figure} of the last epoch on the `val` clips; of the full model those of `AT_TEST` too."""
    import torch

    from pipelines.retrieval_model import embed_texts, embed_videos
    from pipelines.retrieval_training import open_retrieval
    from pipelines.run_folder import load_tensors, open_run

    model, data, _ = open_retrieval(open_run(run), None, "cpu", False)
    # The best epoch of a noisy curve would favour whoever is noisier.
    tensors, _ = load_tensors(run / "last.safetensors")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    pairs = data.pairs("val")
    text, video = embed_texts(model, pairs, "cpu"), embed_videos(model, pairs, "cpu")
    found = {}
    for name, score in {row: "", **(AT_TEST if row == FULL else {})}.items():
        if score:
            model.head.config = dataclasses.replace(model.head.config, score=score)
        with torch.inference_mode():
            similarity = model.head.similarity(text, video).numpy()
        found |= {f"{name}: {metric}": value for metric, value in ranked(similarity, pairs).items()}
    return found


def ranked(similarity, pairs) -> dict[str, float]:
    """The metrics of a similarity matrix, and "n entities": the mean recall of the captions that name so many, and of
    their clips, each among all."""
    import numpy as np

    from heads.retrieval_metrics import retrieval_figures, retrieval_ranks

    captions, clips = pairs.captions.text[pairs.rows], pairs.captions.clip[pairs.rows]
    if len(pairs.columns) != len(clips):
        raise ValueError("toy kitchen has one caption a clip")
    clip_of_column = np.empty(len(clips), object)
    clip_of_column[pairs.column_of] = clips
    own = pairs.column_of[:, None] == np.arange(len(clips))
    counted = np.where(fitting(captions, clip_of_column) & ~own, np.nan, similarity)
    texts, videos = retrieval_ranks(counted.__getitem__, pairs.column_of, len(clips))

    entities = np.array([len(phrases(caption)) for caption in captions])
    of_video = np.empty_like(entities)
    of_video[pairs.column_of] = entities

    def metrics(of_texts, of_videos) -> dict[str, float]:
        ways = {"t2v": retrieval_figures(of_texts, len(clips)), "v2t": retrieval_figures(of_videos, len(clips))}
        found = {f"{way} {name}": value for way, figures in ways.items() for name, value in figures.items()}
        return {MAIN: fmean(found[name] for name in RECALLS), **{name: found[name] for name in METRICS[1:]}}

    return metrics(texts, videos) | {
        f"{n} entities": metrics(texts[entities == n], videos[of_video == n])[MAIN] for n in ENTITIES
    }


def phrases(caption: str) -> frozenset[str]:
    """What a caption says, an object each."""
    return frozenset(caption.split(", "))


@functools.cache
def sayable() -> tuple[frozenset[str], ...]:
    """By clip, all that a caption of it could say."""
    import numpy as np

    from extract.datasets.toykitchen import write_script
    from extract.datasets.toykitchen.annotations import caption

    scenes = [scene for video in write_script(dials_of(KITCHEN)) if not video.events for scene in video.scenes]
    rng = np.random.default_rng(0)
    said = [phrases(caption(scene, 1 << 30, rng)) for scene in scenes if scene.verb >= 0]  # "at most": hence all
    if {len(all_of_it) for all_of_it in said} != {1 + dials_of(KITCHEN).distractors}:
        raise ValueError("a caption that may name all objects of a scene does not")
    return tuple(said)


def fitting(captions, clips):
    """(captions, clips) bool: what the caption says is true of the clip. clips: their ids."""
    import numpy as np

    said = [sayable()[int(clip)] for clip in clips]
    return np.array([[phrases(caption) <= all_of_it for all_of_it in said] for caption in captions])


# --- all of them ---


def measured(root: Path, seeds) -> dict[str, dict[str, float]]:
    """{seed: its figures}, those of ROOT/ablations_retrieval.json as they are, the others made now."""
    kept, settings = root / "ablations_retrieval.json", settings_now()
    told = json.loads(kept.read_text()) if kept.is_file() else {"settings": settings, "seeds": {}}
    if told["settings"] != settings:
        raise SystemExit(f"{kept} is of other settings: remove it, or give another --root")
    found, started = told["seeds"], time.monotonic()
    chain = Bench(root, list(seeds), {}, {}).chain(KITCHEN, 0)
    stores = stores_of(chain) if any(str(seed) not in found for seed in seeds) else {}
    for seed in (seed for seed in seeds if str(seed) not in found):
        rows = [figures_of(trained(chain, stores, row, seed), row) for row in ROWS]
        found[str(seed)] = {name: value for row in rows for name, value in row.items()}
        kept.write_text(json.dumps(told, indent=1))
        shutil.rmtree(folder_of(chain, seed))
        print(f"seed {seed}, after {time.monotonic() - started:.0f} s", flush=True)
    return {str(seed): found[str(seed)] for seed in seeds}


def settings_now() -> dict:
    """What decides the figures, as JSON has it."""
    told = {"kitchen": dials_of(KITCHEN).hash, "frames": (FRAME_HOP, FRAME_SIDE)}
    return json.loads(json.dumps(told | {"budget": BUDGET, "rows": ROWS, "at test": AT_TEST}))


# --- the document ---


def relations_of(found: dict[str, dict[str, float]]) -> dict[str, list[Relation]]:
    """{title: relations} in the order of the document."""

    def of(row: str, metric: str) -> list[float]:
        return [figures[f"{row}: {metric}"] for figures in found.values()]

    def as_printed(metric: str, row: str, other: str) -> Relation:
        difference = printed(row, metric) - printed(other, metric)
        more, less = (row, other) if difference > 0 else (other, row)
        return relation(f"{metric}: {more} > {less} ({abs(difference):+.1f})", of(more, metric), of(less, metric))

    tables = {
        f"Table {title}": [
            as_printed(metric, *pair)
            for metric in METRICS
            for pair in itertools.combinations(rows, 2)
            if printed(pair[0], metric) != printed(pair[1], metric)
        ]
        for title, rows in TABLES.items()
    }
    pairs = ((FULL, "w/o local at test"), (FULL, "MEE"), (FULL, "CE"), ("CE", "MEE"), ("MEE", "w/o local"))
    tables["Beside the tables"] = [relation(f"{MAIN}: {a} > {b}", of(a, MAIN), of(b, MAIN)) for a, b in pairs]
    tables["The local part's gain (mean recall) against the number of entities in a caption"] = [
        claim for without in WITHOUT_LOCAL for claim in entity_relations(of, without)
    ]
    return tables


def entity_relations(of, without: str) -> list[Relation]:
    """The full model's gain over one without the local part by the captions' number of entities, and its growth.

    of(row, metric): the figures by seed.
    """
    named = {n: (of(FULL, f"{n} entities"), of(without, f"{n} entities")) for n in ENTITIES}
    gains = {n: [more - less for more, less in zip(*both, strict=True)] for n, both in named.items()}
    few, many = ENTITIES[0], ENTITIES[-1]
    return [
        *(relation(f"{count(n)}: {FULL} > {without}", *both) for n, both in named.items()),
        relation(f"gain over {without}: {count(many)} > {count(few)}", gains[many], gains[few]),
    ]


def count(entities: int) -> str:
    from errors import count_of

    return count_of(entities, "entity", "entities")


def printed(row: str, metric: str) -> float:
    """The thesis's figure."""
    figures = dict(zip((*RECALLS[:3], "t2v MdR", *RECALLS[3:], "v2t MdR"), PRINTED[row], strict=True))
    return fmean(figures[name] for name in RECALLS) if metric == MAIN else figures[metric]


def document(found: dict[str, dict[str, float]]) -> str:
    """The section's Markdown, without its heading."""
    from collections import Counter

    from extract.datasets.toykitchen import write_script

    videos = [video for video in write_script(dials_of(KITCHEN)) if not video.events]
    clips = Counter(video.split for video in videos for _ in video.scenes)
    train, test = clips["train"], clips["val"]
    lines = [
        f"`python benchmarks/ablations_retrieval.py`, {len(found)} paired seeds, on toy kitchen's captions (dials' hash"
        f" {dials_of(KITCHEN).hash[:16]}): {train} clips to train, a caption each; figures of {test} in other kitchens"
        " with other digits, on which nothing was chosen, after the last epoch. Recalls in percent, mean ± standard"
        " deviation; *mean recall*, the main figure, is that of R@1, R@5 and R@10 both ways (chance:"
        f" {fmean((1, 5, 10)) / test:.1%}). A clip that a caption is true of without being its own is left out of the"
        " caption's ranking, and the caption out of the clip's: it is neither right nor wrong. Differences are paired;"
        " in brackets: the thesis's, on MSR-VTT 1k-A. A relation *holds* where the 95 % interval lies above 0, is"
        " *reversed* where it lies below, and is *undecided* else; MdR is a rank, so that more is worse.",
        "",
        "All rows are `frozen`: the tokens are MiniLM's, where the thesis fine-tunes BERT; *w/o local* sees its [CLS]"
        " alone, which nothing trained for that. Experts: whole frames and the dataset's boxes by EfficientNet-Lite0"
        f" (ImageNet), a frame every {FRAME_HOP:g} s and boxes twice a second, and the middle of the clip by a small3d"
        f" trained on the training clips' verbs. {BUDGET['epochs']} epochs, "
        + ", ".join(f"{name} {value:g}" for name, value in BUDGET.items() if name != "epochs")
        + ", the same for all rows; else the thesis's settings.",
        "",
        machine_line(),
        "",
        f"| row | {' | '.join(METRICS)} |",
        "|---" * (1 + len(METRICS)) + "|",
    ]
    for row in (FULL, *AT_TEST, *(row for row in ROWS if row != FULL)):
        cells = (spread([figures[f"{row}: {metric}"] for figures in found.values()]) for metric in METRICS)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    tables = relations_of(found)
    verdicts = Counter(r.verdict for title, relations in tables.items() if title.startswith("Table") for r in relations)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in ("holds", "reversed", "undecided"))
    lines += ["", f"Of the {verdicts.total()} relations of tables 6.4 to 6.6: {counts}."]
    return "\n".join([*lines, *sections(tables)])


def main() -> int:
    args = arguments(__doc__, TITLE).parse_args()

    check_frozen()
    warnings.simplefilter("ignore")
    with work_folder(args.root) as root:
        text = document(measured(root, args.seeds))
    print(text)
    if args.write:
        write_section(args.write, TITLE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
