"""`recognize`: what it says is what the heads say of stores, the heavy network sees what is picked and nothing else."""

import json
import shutil
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from media import counter, make_video, sound_only, x264

from cli import main
from errors import UserError
from extract.decode import open_source
from extract.networks import create_network
from extract.transforms import Resize
from heads.frame_sampling import adaptive_m, select
from pipelines import Extraction, extract, train_backbone, train_head
from pipelines.cost import network_cost
from pipelines.recogniser_clips import VectorInputs
from pipelines.recognize import recognize
from pipelines.run_folder import open_run, save_tensors
from pipelines.sampler_clips import SharedFrames
from pipelines.sampler_model import load_sampler
from stores import open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]

FPS = 25
N, M = 8, 3
LENGTHS = {"v0": 72, "v1": 60, "v2": 96, "v3": 50, "short": 7, "still": 1}  # frames of each video
QUICK = {"frames": N, "sampled": M, "batch_size": 4, "lr": 0.05, "workers": 1}
HOP = 0.12  # 24 candidates in v0; not all fall on a frame's own time
HEAVY = """
import numpy as np
import torch
from extract.networks import Network, NetworkSpec

SEEN = []  # every frame that was ever shown


class Heavy(Network):
    def compute(self, x, slots, batch):
        SEEN.extend(x.cpu().numpy())
        corners = self.normalise(x)[:, :, ::12, ::12].flatten(1)
        return {"logits": corners @ torch.linspace(-1, 1, corners.shape[1] * 3).reshape(-1, 3).sin()}


def factory(*, resize=None):
    return Heavy(NetworkSpec(
        name="heavy", kind="backbone", reads="rgb_frame", outputs={"logits": ((3,), "feature")}, family="frame",
        resize=resize or {"mode": "squash", "size": 48}, mean=(0.5,) * 3, std=(0.2,) * 3, batch_size=4,
    ))
"""


@pytest.fixture(autouse=True)
def weights_folder(made, monkeypatch):
    """Where weights are found again."""
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(made))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder: videos/, mine.csv, weights, a light store, a heavy store and one of frames."""
    folder = tmp_path_factory.mktemp("recognize")
    for name in ("videos", "nothing"):
        (folder / name).mkdir()
    lines = ["video,start,stop,what,split"]
    for i, (name, n) in enumerate(LENGTHS.items()):
        make_video(folder / "videos" / f"{name}.mp4", "libx264", n, options=x264(keyint=10))
        lines.append(f"{name},0,{n / FPS},{('cut', 'mix', 'stir')[i % 3]},{'val' if i == 3 else 'train'}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    (folder / "heavy.py").write_text(HEAVY)
    save_tensors(folder / "light.safetensors", create_network("shufflenet_v2", "random:3").module.state_dict(), {})
    small = 'resize={"mode":"squash","size":32}'
    light = {"backbone": "shufflenet_v2", "weights": (str(folder / "light.safetensors"),), "option": (small,)}
    store(folder, "light", keep=("vector",), **light)
    store(folder, "heavy", backbone=f"py:{folder / 'heavy.py'}:factory", keep=("logits",))
    store(folder, "frames", backbone="frames", option=(small,))
    return folder


def store(folder, name, features="features", **options):
    values = {"dataset": str(folder / "mine.csv"), "videos": folder / "videos", "hop": HOP, "only": True, **options}
    (report,) = extract(Extraction(name=name, features=(folder / features,), **values))
    assert report.complete
    return open_store(report.store)


def path_of(made, name):
    return made / "features" / "mine" / f"{name}.zarr"


def seen_by_heavy(made) -> list:
    """The frames that the heavy network was shown: a list that can be cleared."""
    module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(made / "heavy.py"))
    return module.SEEN


@pytest.fixture(scope="module", params=["psn", "scsampler"])
def run(request, made):
    return trained(made, request.param)


def trained(made, head, out=None, **settings):
    out = out or made / "runs" / head
    given = {"sampler": path_of(made, "light"), "recogniser": path_of(made, "heavy"), "target": "what"}
    set_ = {**QUICK, **({"width": 16} if head == "psn" else {}), **settings}
    return train_head(head, out=out, set=set_, epochs=2, allow_random=True, progress=False, say=str, **given)


@pytest.fixture(scope="module")
def psn(made):
    return trained(made, "psn")


def said(made, run, *videos, **options):
    """Facts of videos of `made`; nothing is drawn."""
    paths = [made / "videos" / f"{name}.mp4" for name in videos]
    options = {"strips": None, "features": [made / "nothing"], "device": "cpu", **options}
    return list(recognize(paths, run, **options))


def of_stores(made, run, name, light="light", heavy="heavy"):
    """(class probabilities, scores, picked) of a video, N candidates: the head on stores alone."""
    light, heavy = open_store(path_of(made, light)), open_store(path_of(made, heavy))
    video = light.video_index(name)
    clips = {"id": np.array([name], object), "video": np.array([video], np.int32), "start_s": np.zeros(1)}
    shared = SharedFrames(light, heavy, {**clips, "stop_s": np.full(1, np.nan)})
    rows, mask = shared.at(np.array([0]), np.full((1, N), 0.5))
    model, _ = load_sampler(open_run(run), "cpu")
    batch = {
        "sampler": {"vector": torch.from_numpy(VectorInputs(light).batch(rows[0, :, 0]))[None]},
        "recogniser": {"logits": torch.from_numpy(heavy.read("logits", rows[0, :, 1]).astype(np.float32))[None]},
    }
    for part in batch.values():
        part["mask"] = torch.from_numpy(mask)
    with torch.inference_mode():
        out = model.head.predict(batch)
    return out["class"][0].softmax(-1).numpy(), out["score"][0].numpy(), out["picked"][0].numpy()


def check_like_stores(made, run, facts, name, **stores):
    probabilities, scores, picked = of_stores(made, run, name, **stores)
    n = len(facts["frames"])
    assert not picked[n:].any()
    assert [frame["picked"] for frame in facts["frames"]] == picked[:n].tolist()
    found = [np.nan if frame["score"] is None else frame["score"] for frame in facts["frames"]]
    np.testing.assert_allclose(np.nan_to_num(found), scores[:n], atol=2e-4)
    order = np.argsort(-probabilities)
    assert [label["class"] for label in facts["labels"]] == order.tolist()
    np.testing.assert_allclose([label["probability"] for label in facts["labels"]], probabilities[order], atol=1e-4)


# --- the same as on stores ---


def test_computed_it_is_what_the_head_says_of_stores(made, run):
    names = ("v0", "v2", "v3", "short", "still")
    for name, facts in zip(names, said(made, run, *names, compare=True), strict=True):
        assert not facts["from_stores"] and len(facts["frames"]) == min(N, -(-LENGTHS[name] // 3))
        check_like_stores(made, run, facts, name)
        assert [one["frames"] for one in facts["methods"]] == [min(M, len(facts["frames"]))] * 2 + [
            len(facts["frames"])
        ]


def test_from_stores_it_is_the_same_and_nothing_is_decoded_or_computed(made, run):
    seen_by_heavy(made).clear()
    for name, facts in zip(("v0", "still"), said(made, run, "v0", "still"), strict=True):
        check_like_stores(made, run, facts, name)
        n = min(N, LENGTHS[name])
        assert facts["from_stores"] == {
            "sampler": {"store": str(path_of(made, "light").resolve()), "rows": n, "of": n},
            "recogniser": {"store": str(path_of(made, "heavy").resolve()), "rows": min(n, M), "of": min(n, M)},
        }
        assert facts["methods"][0]["decoding_s"] == 0
    assert not any(image.any() for image in seen_by_heavy(made))  # black ones are counted for the GFLOPs


def test_a_name_that_stores_know_needs_no_file(made, run):
    (facts,) = recognize(["v2"], run, strips=None, features=[made / "nothing"])
    assert facts["path"] is None and facts["strip"] is None
    check_like_stores(made, run, facts, "v2")


def test_a_video_is_known_by_its_content_whatever_its_name(made, psn, tmp_path):
    shutil.copy(made / "videos" / "v1.mp4", tmp_path / "other.mp4")
    shutil.copy(made / "videos" / "v0.mp4", tmp_path / "v2.mp4")  # a name that stores have for another video
    other, v2 = recognize([tmp_path], psn, strips=None, features=[made / "nothing"])
    assert set(other["from_stores"]) == set(v2["from_stores"]) == {"sampler", "recogniser"}
    check_like_stores(made, psn, other, "v1")
    check_like_stores(made, psn, v2, "v0")


# --- which frames the heavy network sees ---


def test_the_heavy_network_sees_the_picked_frames_alone(made, psn, tmp_path):
    new = make_video(tmp_path / "new.mp4", "libx264", 80, options=x264(keyint=10))
    seen_by_heavy(made).clear()
    (facts,) = recognize([new], psn, strips=None, features=[made / "nothing"])
    shown = list(seen_by_heavy(made))
    picked = [frame["time_s"] for frame in facts["frames"] if frame["picked"]]
    assert len(shown) == len(picked) == M and not facts["from_stores"]
    with open_source(new) as source:
        indices, _ = source.at(np.array(picked))
        for image, index in zip(shown, indices.tolist(), strict=True):
            assert counter(image) == index
            ((_, expected),) = source.read([index], Resize("squash", 48))
            assert np.array_equal(image, expected)
    assert facts["methods"][0]["decoding_s"] > 0 and "networks_s" not in facts["methods"][1]


def test_the_candidates_are_the_middles_of_equal_parts_of_the_grid(made, psn):
    (facts,) = said(made, psn, "v0")
    grid = np.arange(24) * HOP  # 72 frames of 40 ms
    np.testing.assert_allclose([frame["time_s"] for frame in facts["frames"]], grid[1::3])


def test_what_one_store_lacks_is_computed_for_the_other_network_alone(made, psn, tmp_path):
    """A video of another dataset, whose light features are there, and heavy ones of none but one of its frames."""
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "new.mp4", "libx264", 90, options=x264(keyint=10))
    (tmp_path / "mine.csv").write_text("video,start,stop\nnew,0,3.6\n")
    weights, small = str(made / "light.safetensors"), 'resize={"mode":"squash","size":32}'
    store(tmp_path, "some", backbone="shufflenet_v2", weights=(weights,), option=(small,), keep=("vector",))
    seen_by_heavy(made).clear()
    options = {"strips": None, "features": [tmp_path / "features"]}
    (facts,) = recognize([tmp_path / "videos"], psn, **options)
    assert set(facts["from_stores"]) == {"sampler"} and facts["from_stores"]["sampler"]["rows"] == N
    assert len(seen_by_heavy(made)) == M
    (whole,) = recognize([tmp_path / "videos"], psn, compare=True, **options)
    for key in ("frames", "labels"):
        assert json.dumps(rounded(whole[key])) == json.dumps(rounded(facts[key]))


def rounded(rows):
    return [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def test_fewer_or_more_frames_when_asked(made, psn):
    for m in (1, 5, N):
        seen_by_heavy(made).clear()
        facts, still = said(made, psn, "v1", "still", sampled=m, compare=True)
        assert sum(frame["picked"] for frame in facts["frames"]) == facts["methods"][0]["frames"] == m
        assert sum(frame["picked"] for frame in still["frames"]) == 1
        assert len(seen_by_heavy(made)) == N + m + m + N + 1 + 1 + 1  # warmed up; psn, uniform and dense of both


def test_adaptive_frames_follow_the_threshold_of_the_run(made, tmp_path):
    run = trained(made, "psn", tmp_path / "run")
    (facts,) = said(made, run, "v0")
    scores = torch.tensor([[frame["score"] for frame in facts["frames"]]])
    mask, threshold = torch.ones_like(scores, dtype=torch.bool), scores.sum().item() / 5
    expected = adaptive_m(scores, mask, threshold)
    assert expected.item() != M
    open_run(run).write_json("adaptive.json", {"clips": 1, "thresholds": {"3": threshold, "2": 1e9}})
    (facts,) = said(made, run, "v0", adaptive=True)
    assert [frame["picked"] for frame in facts["frames"]] == select(scores, expected)[0].tolist()
    (facts,) = said(made, run, "v0", adaptive=True, sampled=2)
    assert sum(frame["picked"] for frame in facts["frames"]) == 1


def test_the_thresholds_of_a_run_without_any_are_found(made, tmp_path):
    run = trained(made, "psn", tmp_path / "run")
    (run / "adaptive.json").unlink(missing_ok=True)
    (facts,) = said(made, run, "v0", adaptive=True)
    assert 1 <= facts["methods"][0]["frames"] <= N
    assert set(json.loads((run / "adaptive.json").read_text())["thresholds"]) == {str(m) for m in range(1, N + 1)}


# --- what it costs ---


def test_gflops_are_those_of_the_frames_that_are_seen(made, psn):
    (facts,) = said(made, psn, "v0", sampled=2)
    own, uniform, dense = (one["gflops"] for one in facts["methods"])
    assert dense == pytest.approx(uniform * N / 2)
    network = create_network("shufflenet_v2", "random:0", resize={"mode": "squash", "size": 32})
    network.keep = ("vector",)
    light = network_cost(network, 1).gflops
    assert own > uniform + N * light > uniform
    (short,) = said(made, psn, "short")
    assert short["methods"][0]["gflops"] - own == pytest.approx((3 - N) * light + uniform / 2)


def test_a_comparison_says_what_uniform_and_dense_say(made, psn):
    (facts,) = said(made, psn, "v0", compare=True)
    light, heavy = open_store(path_of(made, "light")), open_store(path_of(made, "heavy"))
    video = SharedFrames(light, heavy, {**clip_of(light, "v0")})
    rows, _ = video.at(np.array([0]), np.full((1, N), 0.5))
    logits = heavy.read("logits", rows[0, :, 1]).astype(np.float32)
    places = {"uniform": [(2 * i + 1) * N // (2 * M) for i in range(M)], "dense": list(range(N))}
    names = heavy.manifest.dataset["class_names"]["what"]
    for one in facts["methods"][1:]:
        assert one["label"] == names[logits[places[one["method"]]].mean(axis=0).argmax()]
        assert one["networks_s"] > 0 and one["decoding_s"] > 0


def clip_of(store, name):
    clips = {"id": np.array([name], object), "video": np.array([store.video_index(name)], np.int32)}
    return {**clips, "start_s": np.zeros(1), "stop_s": np.full(1, np.nan)}


# --- what can go wrong ---


def test_frames_that_cannot_be_decoded_are_left_out_as_in_stores(made, psn, tmp_path):
    (tmp_path / "videos").mkdir()
    video = damaged(tmp_path / "videos" / "hurt.mp4")
    (tmp_path / "mine.csv").write_text("video,start,stop\nhurt,0,4\n")
    (facts,) = recognize([video], psn, strips=tmp_path / "strips", features=[made / "nothing"])
    lost = [frame["score"] is None for frame in facts["frames"]]
    assert 0 < sum(lost) < N and not any(f["picked"] for f, gone in zip(facts["frames"], lost, strict=True) if gone)
    request = Extraction(
        dataset=str(tmp_path / "mine.csv"), videos=tmp_path / "videos", hop=HOP, only=True, name="heavy",
        features=(tmp_path / "features",), backbone=f"py:{made / 'heavy.py'}:factory", keep=("logits",),
    )  # fmt: skip
    (report,) = extract(request)
    status = open_store(report.store).status()
    times = np.array([frame["time_s"] for frame in facts["frames"]])
    assert lost == (status[np.rint(times / HOP).astype(int)] == 2).tolist()
    (again,) = recognize([video], psn, strips=None, features=[tmp_path / "features"])
    assert again["from_stores"]["recogniser"]["rows"] == M and rounded(again["frames"]) == rounded(facts["frames"])


def damaged(path, n=100):
    """A video of which one stretch between keyframes cannot be decoded."""
    whole = make_video(path.with_suffix(".whole.mp4"), "libx264", n, options=x264(keyint=10))
    data = bytearray(whole.read_bytes())
    whole.unlink()
    start = data.find(b"mdat") + 4
    middle = start + (len(data) - start) // 2
    data[middle : middle + len(data) // 6] = bytes(len(data) // 6)
    path.write_bytes(data)
    return path


def test_a_bad_video_costs_only_itself(made, psn, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    shutil.copy(made / "videos" / "v0.mp4", tmp_path / "in" / "deep" / "good.mp4")
    shutil.copy(made / "videos" / "v0.mp4", tmp_path / "in" / "good.mp4")
    (tmp_path / "in" / "empty.mp4").write_bytes(b"")
    (tmp_path / "in" / "text.mkv").write_text("not a video")
    (tmp_path / "in" / "readme.txt").write_text("no video, and not asked for")
    sound_only(tmp_path / "in" / "sound.mp4")
    arguments = ["recognize", tmp_path / "in", "--run", psn, "--out", tmp_path / "strips", "--json"]
    arguments += ["--features", made / "nothing"]
    result = CliRunner().invoke(main, [str(part) for part in arguments])
    assert result.exit_code == 3, result.output
    facts = {one["video"]: one for one in map(json.loads, result.stdout.splitlines())}
    assert set(facts) == {"deep/good.mp4", "good.mp4", "empty.mp4", "text.mkv", "sound.mp4"}
    reasons = {name: one["failure"]["reason"] for name, one in facts.items() if "failure" in one}
    assert reasons == {"empty.mp4": "empty", "text.mkv": "not_video", "sound.mp4": "not_video"}
    assert facts["good.mp4"]["labels"] == facts["deep/good.mp4"]["labels"]
    assert {path.relative_to(tmp_path / "strips").as_posix() for path in (tmp_path / "strips").rglob("*.png")} == {
        "good.mp4.png",
        "deep/good.mp4.png",
    }
    assert "3 failed" in result.stderr and "video" in result.stderr


def test_what_is_printed(made, psn, tmp_path):
    arguments = ["recognize", made / "videos" / "v0.mp4", "--run", psn, "--out", tmp_path]
    arguments += ["--features", made / "nothing"]
    result = CliRunner().invoke(main, [str(part) for part in arguments])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"v0.mp4: 2.9 s, {N} candidate frames"
    assert {line.split()[2] for line in lines[1:4]} == {"cut", "mix", "stir"}
    assert lines[4].count(" s (") == M and "from a store, not computed: recogniser, 3 of 3 frames" in result.stdout
    assert [line.split()[:2] for line in lines[-5:-2]] == [["psn", "3"], ["uniform", "3"], ["dense", "8"]]
    assert lines[-2].strip() == str(tmp_path / "v0.mp4.png") and (tmp_path / "v0.mp4.png").stat().st_size > 1000


def test_weights_are_found_again_or_asked_for(made, psn, tmp_path, monkeypatch):
    monkeypatch.delenv("CLIPBANK_WEIGHTS", raising=False)
    video = make_video(tmp_path / "new.mp4", "libx264", 40)
    match = r"weights of the sampler, shufflenet_v2 \(file:light.safetensors\).*--weights sampler=PATH"
    options = {"strips": None, "features": [made / "nothing"]}
    with pytest.raises(UserError, match=match):
        list(recognize([video], psn, **options))
    save_tensors(tmp_path / "light.safetensors", create_network("shufflenet_v2", "random:4").module.state_dict(), {})
    with pytest.raises(UserError, match=match + ".*are others"):
        list(recognize([video], psn, weights=[f"sampler={tmp_path / 'light.safetensors'}"], **options))
    (given,) = recognize([video], psn, weights=[f"sampler={made / 'light.safetensors'}"], **options)
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(made))
    (found,) = recognize([video], psn, **options)
    assert found["labels"] == given["labels"]


def test_wrong_use(made, psn, tmp_path):
    video = made / "videos" / "v0.mp4"
    (tmp_path / "none").mkdir()
    (tmp_path / "frames.tar").write_bytes(b"")
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "run.json").write_text(json.dumps({"format": 1, "head": {"name": "saoa"}}))
    for videos, options, match in (
        ([], {}, "say which videos"),
        ([video], {"sampled": 0}, "--sampled must be from 1 to the 8 candidates"),
        ([video], {"sampled": N + 1}, "--sampled must be from 1 to the 8 candidates"),
        ([video], {"top": 0}, "--top must be at least 1"),
        ([video], {"weights": ["light.pth"]}, "write ROLE=PATH, the role being sampler or recogniser"),
        ([video], {"weights": ["heavy=x.pth"]}, "write ROLE=PATH"),
        ([video], {"device": "abacus"}, "--device abacus"),
        ([tmp_path / "missing.mp4"], {}, "no such file or folder, and no store"),
        ([tmp_path / "none"], {}, "has no videos in it"),
        ([tmp_path / "frames.tar"], {}, "a tar of frames has no clock"),
        ([video], {"run": tmp_path / "head"}, "is no trained sampler"),
        ([video], {"run": tmp_path / "none"}, "no run.json"),
        ([video], {"stores": {"sampler": path_of(made, "frames")}}, "is not what .* was trained on"),
    ):
        with pytest.raises(UserError, match=match):
            recognize(videos, **{"run": psn, "strips": None, **options})
    result = CliRunner().invoke(main, ["recognize", str(video)])
    assert result.exit_code == 2 and "--run" in result.output


def test_a_network_of_clips_cannot_be_shown_frames(made, tmp_path):
    """Stores of the segment axis train a sampler, but single frames are what `recognize` decodes."""
    options = {"option": ("clip_len=2",), "weights": ("random:0",), "axis": "segment", "keep": ("vector",)}
    light = store(tmp_of(made, tmp_path), "clips", backbone="tiny3d", **options)
    run = trained(made, "psn", tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    facts["stores"]["sampler"] |= {"path": str(light.path), "recipe": light.manifest.recipe_hash}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="reads rgb_clip: recognize shows single RGB frames"):
        recognize([made / "videos" / "v0.mp4"], run, strips=None)


def tmp_of(made, tmp_path):
    """The dataset of `made` in a folder whose stores are one's own."""
    shutil.copy(made / "mine.csv", tmp_path / "mine.csv")
    (tmp_path / "videos").symlink_to(made / "videos")
    return tmp_path


# --- a light network trained with its head ---


def test_a_joint_run_brings_its_own_light_network(made, tmp_path):
    run = train_backbone(
        "shufflenet_v2", head="psn-sampler", frames=path_of(made, "frames"), recogniser=path_of(made, "heavy"),
        target="what", weights="random:0", option=['resize={"mode":"squash","size":32}'], epochs=1, allow_random=True,
        out=tmp_path / "joint", set={**QUICK, "width": 16}, progress=False, say=str,
    )  # fmt: skip
    (facts,) = said(made, run, "v2")
    assert set(facts["from_stores"]) == {"recogniser"}
    small, values = 'resize={"mode":"squash","size":32}', {"keep": ("vector",), "dtype": "float32"}
    store(made, "joint", backbone="shufflenet_v2", weights=(str(run),), option=(small,), **values)
    check_like_stores(made, run, facts, "v2", light="joint")
    (again,) = said(made, run, "v2", features=[made / "features"])
    assert set(again["from_stores"]) == {"sampler", "recogniser"} and rounded(again["frames"]) == rounded(
        facts["frames"]
    )
    with pytest.raises(UserError, match="was trained in this run"):
        said(made, run, "v2", weights=["sampler=x"])


def test_times_that_vary_and_b_frames(made, psn, tmp_path):
    """What is on screen at an instant is the decoder's matter: the frames are those that stage one takes."""
    pts = np.cumsum(np.random.default_rng(0).integers(20, 90, 60)).tolist()
    path = make_video(
        tmp_path / "vary.mp4", "libx264", 60, pts=pts, time_base=Fraction(1, 1000), options=x264(keyint=20, bframes=3)
    )
    seen_by_heavy(made).clear()
    (facts,) = recognize([path], psn, strips=None, features=[made / "nothing"])
    with open_source(path) as source:
        indices, _ = source.at(np.array([frame["time_s"] for frame in facts["frames"] if frame["picked"]]))
    assert [counter(image) for image in seen_by_heavy(made)] == indices.tolist()
