"""Search: an index of a retrieval run's embeddings, two steps over it, what is printed, and the page."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from retrieval_samples import N, expert_store, run_of, small_text_network, text_store, two_experts

import pipelines.retrieval_index as retrieval_index
import pipelines.search_keys as search_keys
from cli import main
from errors import MachineError, UserError
from extract.networks.base import Network
from heads import get_head, list_heads
from heads.text_video import TextVideoHead
from pipelines import Extraction, extract
from pipelines.retrieval_embeddings import CAPTIONS, read_embeddings
from pipelines.retrieval_index import build_index, index_path, open_index
from pipelines.retrieval_model import embed_texts, embed_videos
from pipelines.retrieval_training import open_retrieval
from pipelines.run_folder import open_run
from pipelines.search import Searcher, compare
from pipelines.search_keys import make_keys
from pipelines.search_page import page
from stores import ABSENT, open_store

HEADS = [name for name in list_heads() if issubclass(get_head(name), TextVideoHead)]
pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(line):
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function: head -> the folder of a run of it, with a text network that was trained too, and its indexes."""
    folder = tmp_path_factory.mktemp("search")
    two_experts(folder)
    network = small_text_network(folder / "bert")
    made = {}

    def get(head):
        if head not in made:
            run = run_of(folder, folder / "runs" / head, head, text=network, set={"epochs": 1, "text_tokens": 6})
            for of in ("videos", CAPTIONS):
                build_index(run, of=of, say=quiet)
            made[head] = run
        return made[head]

    return get


def exact(run):
    """(similarity of all captions with all clips as evaluation finds it, captions' texts, clip ids)."""
    model, data, _ = open_retrieval(open_run(run), None, "cpu", False)
    found, texts, clips = [], [], []
    for split in ("train", "val"):
        pairs = data.pairs(split)
        found.append((embed_texts(model, pairs, "cpu"), embed_videos(model, pairs, "cpu")))
        texts += pairs.captions.text[pairs.rows].tolist()
        clips += pairs.videos.clip_ids[pairs.videos.clips[pairs.columns]].tolist()
    text, video = ({k: torch.cat([side[i][k] for side in found]) for k in found[0][i]} for i in (0, 1))
    with torch.inference_mode():
        similarity = model.head.similarity(text, video)
    return similarity.masked_fill(~video["present"].any(1), float("-inf")).numpy(), texts, clips


# --- exactness ---


def test_every_retrieval_head_is_searched():
    assert HEADS == ["ce", "global_only", "mee", "t2vlad"]


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_those_of_evaluation(trained, head):
    run = trained(head)
    similarity, texts, clips = exact(run)
    searcher = Searcher(run, say=quiet)
    for i in (0, 17, 41):
        hits = searcher.text(texts[i], n=N)["hits"]
        assert len(hits) == N - 2 and not {"c1", "c26"} & {hit["clip"] for hit in hits}  # no expert has those two
        for hit in hits:
            assert hit["score"] == pytest.approx(similarity[i, clips.index(hit["clip"])], abs=1e-5)
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(similarity[i].max(), abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_captions_of_a_video_are_scored_alike(trained, head):
    run = trained(head)
    similarity, texts, clips = exact(run)
    found = Searcher(run, of=CAPTIONS, say=quiet).video("c7", n=2 * N)
    assert found["own"]["clip"] == "c7" and len(found["hits"]) == found["indexed"] == 2 * N
    by_text = dict(zip(texts, similarity[:, clips.index("c7")], strict=True))
    for hit in found["hits"]:
        assert hit["score"] == pytest.approx(by_text[hit["captions"][0]], abs=1e-5)
    assert {hit["captions"][0] for hit in found["hits"]} == set(texts)
    assert found["hits"][0]["score"] == pytest.approx(max(by_text.values()), abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_parts_make_the_similarity_up(head):
    """The first step and the exact score are one formula."""
    torch.manual_seed(0)
    made = get_head(head)
    built = made(made.Config(text_channels=8, experts=("a", "b", "c"), expert_channels=(4, 5, 6), width=8)).eval()
    present = torch.rand(7, 3) < 0.6
    text = {"experts": torch.randn(2, 3, 8), "weights": torch.rand(2, 3), "local": torch.randn(2, 16)}
    video = {"experts": torch.randn(7, 3, 8), "present": present, "local": torch.randn(7, 16)}
    whole = built.similarity(text, video)
    weights = text["weights"][:, None] * present
    cosines = torch.einsum("tnc,vnc->tvn", text["experts"], video["experts"])
    expected = (weights * cosines).sum(-1) / weights.sum(-1).clamp(min=1e-9)
    if head == "t2vlad":
        expected = (expected + text["local"] @ video["local"].T) / 2
    assert torch.allclose(whole, expected, atol=1e-5)


def run_on_tokens(folder, **options):
    """A run of mee on a store of tokens that a text network made."""
    network = small_text_network(folder / "bert")
    expert_store(folder, "rgb", seed=1)
    said = [f"the {word} is here" for word in ("cat", "dog", "red box", "egg", "pan", "hat")] * (N // 6)
    lines = [f"v{i},0,,c{i},{'train' if i < 24 else 'val'},{i} {text}" for i, text in enumerate(said)]
    (folder / "toy.csv").write_text("\n".join(["video,start,stop,id,split,caption", *lines]))
    request = Extraction(
        str(folder / "toy.csv"), backbone=network, videos=folder, features=(folder,), name="words", missing="skip",
        **options,
    )  # fmt: skip
    extract(request, device="cpu")
    return run_of(folder, folder / "run", "mee", set={"epochs": 1})


def test_a_query_is_read_as_the_cached_tokens_were_made(tmp_path):
    """A run on a store of tokens: what is typed goes through the network that made them, and its rounding."""
    run = run_on_tokens(tmp_path)
    build_index(run, say=quiet)
    build_index(run, of=CAPTIONS, say=quiet)
    similarity, texts, clips = exact(run)
    hits = Searcher(run, say=quiet).text(texts[3], n=N)["hits"]
    for hit in hits:
        assert hit["score"] == pytest.approx(similarity[3, clips.index(hit["clip"])], abs=1e-5)
    found = Searcher(run, of=CAPTIONS, say=quiet).video("c3", n=1)["hits"][0]
    assert found["score"] == pytest.approx(similarity[:, clips.index("c3")].max(), abs=1e-5)
    assert np.isnan(open_index(open_run(run), of=CAPTIONS).rows["stop_s"]).all()  # tokens do not know, clips do
    assert found["stop_s"] == 5.0
    with pytest.raises(UserError, match="--store rgb: a search by text .* reads no rgb store; it reads text$"):
        Searcher(run, stores={"rgb": tmp_path / "toy" / "rgb.zarr"}, say=quiet)
    shutil.rmtree(tmp_path / "bert")
    with pytest.raises(UserError, match="weights of the .* are not found"):
        Searcher(run, say=quiet)


def test_tokens_made_in_fp16_are_searched_on_a_cpu(tmp_path, monkeypatch):
    to = Network.to
    with monkeypatch.context() as patched:  # as a GPU would have made them
        patched.setattr(Network, "to", lambda self, device, precision: to(self, device, "fp32"))
        run = run_on_tokens(tmp_path, precision="fp16")
    assert open_store(tmp_path / "toy" / "words.zarr").manifest.recipe["precision"] == "fp16"
    build_index(run, say=quiet)
    similarity, texts, clips = exact(run)
    for hit in Searcher(run, device="cpu", say=quiet).text(texts[3], n=N)["hits"]:
        assert hit["score"] == pytest.approx(similarity[3, clips.index(hit["clip"])], abs=1e-5)


# --- two steps ---


@pytest.fixture
def projected(trained, tmp_path, monkeypatch):
    """(searcher, its keys when only so many directions are kept)."""
    run = trained("t2vlad")
    searcher = Searcher(run, say=quiet)
    shutil.copytree(searcher.store.path, tmp_path / "index.zarr")
    store = open_store(tmp_path / "index.zarr")
    monkeypatch.setattr(search_keys, "WHOLE_BYTES", 0)

    def keys(dimensions):
        monkeypatch.setattr(search_keys, "DIMENSIONS", dimensions)
        return make_keys(store, searcher.head, "videos")

    return searcher, keys


def embedded(searcher, text):
    with torch.inference_mode():
        ids = {name: torch.from_numpy(value) for name, value in searcher._tokens(text).items()}
        return searcher.model.head.encode_text(searcher.model.tokens(ids))


def test_with_all_candidates_two_steps_are_the_full_ranking(projected):
    searcher, keys = projected
    query = embedded(searcher, "a cat in a red box")
    rows, scores = compare(searcher.head, query, searcher.store, keys(2), "videos", N, candidates=N)
    every = searcher.store.ok
    with torch.inference_mode():
        full = searcher.head.similarity(query, read_embeddings(searcher.store, every))[0].numpy()
    order = np.argsort(-full, kind="stable")
    assert rows.tolist() == every[order].tolist() and np.allclose(scores, full[order], atol=1e-6)


def test_keys_approach_the_score_as_directions_are_added(projected):
    searcher, keys = projected
    query = embedded(searcher, "two dogs")
    every = searcher.store.ok
    with torch.inference_mode():
        full = searcher.head.similarity(query, read_embeddings(searcher.store, every))[0]
        errors = []
        for dimensions in (1, 6, 24):
            short = keys(dimensions)
            assert short.rows.tolist() == every.tolist() and "present" in short.short
            assert [part.shape[1] for part in short.parts.values()] == [min(dimensions, 16), min(dimensions, 24)]
            dots = {name: dots[None] for name, dots in short.dots(searcher.head.text_parts(query)).items()}
            errors.append(float((searcher.head.combined(dots, query, short.short)[0] - full).abs().max()))
    assert errors[0] > errors[-1] and errors[-1] < 5e-3
    assert 0 < short.nbytes < 20_000


def test_a_few_candidates_are_compared_in_full(trained):
    searcher = Searcher(trained("mee"), say=quiet)
    few, all_ = (searcher.text("a red egg", n=3, candidates=most) for most in (3, N))
    scores = [[hit["score"] for hit in found["hits"]] for found in (few, all_)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)  # keys are whole here
    assert set(few["seconds"]) == {"loading", "encoding", "candidates", "re-scoring"}
    assert sum(few["weights"].values()) == pytest.approx(1) and set(few["weights"]) == {"rgb", "audio"}


# --- the index ---


def test_an_index_is_a_store(trained):
    run = open_run(trained("t2vlad"))
    store = open_index(run)
    assert store.path == index_path(run, "toy") == run.path / "index" / "toy.zarr" and store.sealed
    clips = np.asarray(store.clips["id"])[store.rows["clip"]]
    assert clips.tolist() == [f"c{i}" for i in range(N)]
    assert set(clips[store.status() == ABSENT]) == {"c1", "c26"}
    assert store.rows["stop_s"].tolist() == [5.0] * N  # whole videos end where their rows do
    assert store.manifest.lineage[0]["dataset"] == "toy"
    result = CliRunner().invoke(main, ["store", "verify", str(store.path)])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["store", "info", str(store.path)])
    assert result.exit_code == 0, result.output


def test_an_index_that_was_interrupted_goes_on(trained, tmp_path, monkeypatch):
    run = trained("t2vlad")
    monkeypatch.setattr(retrieval_index, "UNIT_ROWS", 8)
    whole = build_index(run, out=tmp_path / "whole.zarr", say=quiet)

    class Killed(BaseException):
        pass

    class Bar:
        done = 0

        def __init__(self, title, total):
            assert total == N

        def update(self, rows):
            Bar.done += rows
            if Bar.done >= 16:
                raise Killed

        def close(self):
            pass

    with pytest.raises(Killed):
        build_index(run, out=tmp_path / "parts.zarr", say=quiet, progress=Bar)
    assert not open_store(tmp_path / "parts.zarr").sealed
    with pytest.raises(UserError, match="not finished"):
        Searcher(run, tmp_path / "parts.zarr", say=quiet)
    build_index(run, out=tmp_path / "parts.zarr", say=quiet)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    again = tmp_path / "parts.zarr"
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file()) and len(files) > 20
    assert all((whole / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert (tmp_path / "whole.keys.safetensors").read_bytes() == (tmp_path / "parts.keys.safetensors").read_bytes()


def test_keys_that_are_not_the_index_s_are_made_again(trained, tmp_path):
    run = trained("mee")
    path = build_index(run, out=tmp_path / "one.zarr", say=quiet)
    kept = search_keys.keys_path(open_store(path))
    made = kept.read_bytes()
    for wrong in (b"", made[: len(made) // 2], (index_path(open_run(run), "toy", CAPTIONS)
                                                .with_suffix(".keys.safetensors").read_bytes())):  # fmt: skip
        kept.write_bytes(wrong)
        lines = []
        Searcher(run, path, say=lines.append)
        assert lines == [f"making the keys of {path}"] and kept.read_bytes() == made


def test_other_runs_stores_and_kinds_are_refused(trained, tmp_path):
    run, other = trained("mee"), trained("global_only")
    with pytest.raises(UserError, match="index of another run"):
        Searcher(run, index_path(open_run(other), "toy"), say=quiet)
    with pytest.raises(UserError, match="index of captions, where one of videos"):
        open_index(open_run(run), index_path(open_run(run), "toy", CAPTIONS))
    with pytest.raises(UserError, match=r"another index: .*split.*another --out"):
        build_index(run, split="val", say=quiet)
    folder = tmp_path / "features"
    two_experts(folder)
    path = build_index(run, features=[folder], out=tmp_path / "moved.zarr", say=quiet)
    searcher = Searcher(run, path, say=quiet)
    assert searcher.text("two dogs")["hits"][0]["clip"] == Searcher(run, say=quiet).text("two dogs")["hits"][0]["clip"]
    shutil.rmtree(folder / "toy" / "audio.zarr")
    lacking = shutil.copytree(folder, tmp_path / "lacking")
    Searcher(run, path, say=quiet)  # a search needs no stores of experts
    expert_store(folder, "audio", width=5, absent=(1, 2, 3, 4, 25, 26), seed=2)
    with pytest.raises(UserError, match=r"before its stores changed \(audio\)"):
        Searcher(run, path, say=quiet)
    with pytest.raises(UserError, match="another index: stores.audio"):
        build_index(run, features=[folder], out=path, say=quiet)
    with pytest.raises(UserError, match="no dataset under .* has the stores .* toy lacks audio"):
        build_index(run, features=[lacking], say=quiet)
    with pytest.raises(UserError, match="--store scene: the index of videos .* no scene store; it reads rgb, audio"):
        build_index(run, stores={"scene": folder}, say=quiet)
    with pytest.raises(UserError, match="--store audio: the index of captions .* no audio store; it reads rgb$"):
        build_index(run, of=CAPTIONS, stores={"audio": folder}, say=quiet)


def test_an_unsealed_store_has_changed_where_its_videos_were_found_anew(tmp_path):
    """A repair of changed videos computes the same rows again: their status says nothing."""
    rgb = expert_store(tmp_path, "rgb", absent=(1,), seed=1)
    text_store(tmp_path)
    rgb.write_probe("v1", {"duration_s": 5.0})
    rgb.write_probe("v2", {"duration_s": 5.0, "content_hash": "a"})
    run = open_run(run_of(tmp_path, tmp_path / "run", "mee", set={"epochs": 1}))
    build_index(run, say=quiet)
    rgb.write_probe("v1", {"duration_s": 6.0}, replace=True)  # no row of it has values
    assert open_index(run).sealed
    rgb.write_probe("v2", {"duration_s": 5.0, "content_hash": "b"}, replace=True)
    with pytest.raises(UserError, match=r"before its stores changed \(rgb\)"):
        open_index(run)


def test_whole_videos_end_alike_in_both_indexes(trained, tmp_path):
    features = tmp_path / "features"
    rgb = expert_store(features, "rgb", absent=(1, 26), seed=1)
    audio = expert_store(features, "audio", width=5, absent=(1, 2, 3, 25, 26), seed=2)
    rgb.write_probe("v3", {"duration_s": 8.0})
    audio.write_probe("v3", {"duration_s": 9.0})  # the first that knows it says it
    run = trained("mee")
    for of in ("videos", CAPTIONS):
        store = open_store(build_index(run, of=of, features=[features], out=tmp_path / f"{of}.zarr", say=quiet))
        ends = dict(zip(np.asarray(store.videos["name"])[store.rows["video"]], store.rows["stop_s"], strict=True))
        assert ends == {f"v{i}": 8.0 if i == 3 else 5.0 for i in range(N)}


def test_a_damaged_index_says_how_it_is_made_anew(trained, tmp_path):
    run = trained("mee")
    path = build_index(run, out=tmp_path / "hurt.zarr", say=quiet)
    shard = next((path / "data" / "experts").glob("c*"))
    shard = shard if shard.is_file() else next(file for file in shard.rglob("*") if file.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 255
    shard.write_bytes(data)
    for attempt in (
        lambda: build_index(run, out=path, say=quiet),
        lambda: Searcher(run, path, say=quiet).text("a cat", n=N),
    ):
        with pytest.raises(MachineError, match="remove .*make it anew with cli.py index"):
            attempt()
    (path / "zarr.json").write_text("{}")
    with pytest.raises(UserError, match="remove it, and make it anew with"):
        Searcher(run, path, say=quiet)


def test_only_a_split_is_indexed(trained, tmp_path):
    path = build_index(trained("mee"), split="val", out=tmp_path / "val.zarr", say=quiet)
    found = Searcher(trained("mee"), path, say=quiet).text("a cat", n=50)
    assert {hit["clip"] for hit in found["hits"]} == {f"c{i}" for i in range(24, 30)} - {"c26"}


# --- the command line ---


def invoke(*arguments, **options):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_search_prints_hits_and_times(trained):
    run = trained("t2vlad")
    result = invoke("search", run, "a red cat", "-n", 3)
    assert result.exit_code == 0 and "best of 28 clips of toy" in result.output
    assert re.search(
        r"loading [\d.]+ m?s, encoding [\d.]+ m?s, candidates [\d.]+ m?s, re-scoring [\d.]+ m?s", result.output
    )
    assert len(re.findall(r"^ +\d +-?0\.\d{4} +c\d+ +v\d+ +0\.0 to 5\.0 s$", result.output, re.MULTILINE)) == 3
    found = json.loads(invoke("search", run, "--video", "v7.mp4", "-n", 2, "--json").stdout)
    assert found["own"]["video"] == "v7" and len(found["hits"]) == 2
    typed = invoke("search", run, "-n", 1, "--json", input="two dogs\n\nan egg\n")
    assert [json.loads(line)["query"] for line in typed.stdout.splitlines()] == ["two dogs", "an egg"]


def test_index_says_where_it_is(trained, tmp_path):
    out = tmp_path / "here.zarr"
    result = invoke("index", trained("mee"), "--out", out, "--split", "train")
    assert result.exit_code == 0 and result.stdout.strip() == str(out)
    again = invoke("index", trained("mee"), "--out", out, "--split", "train")  # nothing is left to do
    assert again.exit_code == 0 and "making the keys" in result.stderr and "making the keys" not in again.stderr
    found = json.loads(invoke("search", trained("mee"), "a red cat", "--index", out, "--json").stdout)
    assert found["index"] == str(out) and found["indexed"] == 23


def test_wrong_use(trained, tmp_path):
    run = trained("t2vlad")
    alone = shutil.copytree(index_path(open_run(run), "toy"), tmp_path / "alone.zarr")
    for arguments, said in (
        (["search", run, "  "], "an empty query"),
        (["search", run, "a cat", "--video", "c1"], "not both"),
        (["search", run, "--video", "c77"], "no clip or video of .*; there is c7"),
        (["search", run, "--video", "v26"], "no expert has anything of it"),
        (["search", run, "a cat", "-n", 0], "not in the range"),
        (["search", run, "a cat", "--index", tmp_path / "x.zarr"], "there is no index of videos at .*cli.py index"),
        (["search", run, "a cat", "--index", index_path(open_run(trained("mee")), "toy")], "another run"),
        (
            ["search", run, "--video", "c1", "--index", alone],
            f"cli.py index {run} --captions --out .*alone.captions.zarr",
        ),
        (["search", tmp_path, "a cat"], "no run folder"),
        (["search", run, "a cat", "--weights", "/nowhere"], "--weights: .* trained its text network too"),
        (
            ["search", run, "a cat", "--store", f"rgb={alone}", "--weights", "/nowhere"],
            "--store rgb and --weights: .* trained its text network too",
        ),
        (["search", run, "--video", "c1", "--store", f"text={alone}"], "--store text: .* nothing but the indexes"),
        (["search", run, "--video", "c1", "--weights", "/nowhere"], "--weights: .* nothing but the indexes"),
        (["search", run, "--html", tmp_path / "x.html"], "a page of one search: give a QUERY or --video"),
        (["index", run, "--captions", "--store", f"audio={alone}"], "reads no audio store; it reads rgb"),
        (["index", run, "--split", "test"], "no clip is in split 'test'"),
        (["index", run, "--store", "rgb"], "is not ROLE=PATH"),
        (["index", run, "--device", "tpu"], "--device tpu"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2 and re.search(said, result.output.replace("\n", " ")), (arguments, result.output)


def test_a_run_without_weights_or_of_another_kind(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained("global_only"), run)
    (run / "best.safetensors").unlink()
    for command in (["index", run], ["search", run, "a cat"]):
        result = invoke(*command)
        assert result.exit_code == 2 and "no best.safetensors" in result.output
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "kind": "sampler"}))
    result = invoke("search", run, "a cat")
    assert result.exit_code == 2 and "runs of retrieval heads" in result.output


# --- the page ---

FACTS = {
    "query": "<b>cut & paste</b>",
    "run": "runs/<r>",
    "index": "x.zarr",
    "of": "videos",
    "dataset": "my<data>",
    "indexed": 12345,
    "hits": [
        {"score": 0.5, "clip": "c<1>", "video": "v&1", "start_s": 2.0, "stop_s": 6.0, "captions": ["<script>x"]},
        {"score": -0.1, "clip": "c2", "video": "gone", "start_s": 0.0, "stop_s": None, "captions": []},
    ],
    "seconds": {"loading": 1.0, "encoding": 0.01},
    "weights": {"rgb": 0.25, "audio": 0.75},
}  # fmt: skip


def test_the_page_escapes_texts_and_shows_frames():
    asked = []

    def frame_at(video, time_s):
        asked.append((video, time_s))
        if video == "gone":
            raise UserError("video 'gone' is not <here>")
        return np.full((300, 600, 3), (200, 30, 30), np.uint8)

    html = page(FACTS, frame_at)
    assert asked == [("v&1", 4.0), ("gone", 0.0)]
    assert "<script>" not in html and "<b>cut" not in html and "<data>" not in html and "<r>" not in html
    assert "&lt;script&gt;x" in html and "“&lt;b&gt;cut &amp; paste&lt;/b&gt;”" in html
    assert "no picture: video &#x27;gone&#x27; is not &lt;here&gt;" in html
    assert "12,345 clips" in html and "audio 75 %, rgb 25 %" in html and "0.0 to the end" in html
    (picture,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert image.size == (240, 120) and image.getpixel((9, 9))[0] > 150
    assert not re.search(r'(src|href)="(?!data:)', html)


def test_a_page_says_where_videos_are_not_there(trained, tmp_path):
    html = tmp_path / "found.html"
    result = invoke("search", trained("mee"), "a red cat", "--html", html)
    assert result.exit_code == 0 and str(html) in result.output
    assert (
        html.read_text().count("no picture: the dataset is a CSV of your own: say --dataset toy.csv --videos DIR") == 10
    )
    html.unlink()
    result = invoke("search", trained("mee"), "a red cat", "--html", html, "--dataset", "no_such_dataset")
    assert result.exit_code == 2 and "no_such_dataset" in result.stderr and not result.stdout and not html.exists()
    result = invoke("search", trained("mee"), "--video", "c7", "--html", html)
    assert result.exit_code == 0 and "Captions for c7" in html.read_text() and "said of" in html.read_text()
