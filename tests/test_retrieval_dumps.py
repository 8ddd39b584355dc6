"""The published feature dumps of MMT and collaborative-experts: imported, trained on and evaluated, by commands alone.

The dumps are made here, in the published layouts and widths (gabeur/mmt@8f53717, albanie/collaborative-experts
@7eb3b9d); the videos, splits and captions are a sample of MSR-VTT's own annotation file.
"""

import json
import pickle

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from retrieval_samples import small_text_network

from cli import main
from stores import ABSENT, FAILED, open_store

pytestmark = pytest.mark.usefixtures("one_thread")
MMT = {"audio": 128, "face": 512, "flow": 1024, "ocr": 300, "rgb": 2048, "s3d": 1024, "scene": 2208, "speech": 300,
       "vggish": 128}  # fmt: skip
CE = {
    "aggregated_imagenet_25fps_256px_stride1_offset0/senet154-avg": 2048,
    "aggregated_i3d_25fps_256px_stride25_offset0_inner_stride1/i3d-avg": 1024,
    "aggregated_audio_feats/Audio_MSRVTT_new": 128,
    "aggregated_speech/speech-w2v": 300,
}
LOST = "video2213"  # a training video that no dump has
SMALL = ["--epochs", 2] + [
    part for setting in ("width=8", "attention_heads=2", "clusters=3", "batch_size=4") for part in ("--set", setting)
]


def command(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def place(shared, tmp_path_factory):
    """A folder with the annotations, a cached text network's features, and both dumps."""
    root = tmp_path_factory.mktemp("dumps")
    annotations = root / "data" / "msrvtt" / "annotations"
    annotations.mkdir(parents=True)
    info = json.loads((shared / "annotations/msrvtt/videodatainfo_2017_it.sample.json").read_text())
    (annotations / "videodatainfo_2017.json").write_text(json.dumps(info))
    videos = [video["video_id"] for video in info["videos"] if video["video_id"] != LOST]
    _mmt(root / "mmt", videos, info["sentences"])
    _ce(root / "ce", videos)
    network = small_text_network(root / "bert")
    here = ["--dataset", "msrvtt", "--data", root / "data", "--features", root / "features"]
    command("extract", *here, "--backbone", network, "--name", "words", "--only")
    return root


def _mmt(root, videos, sentences):
    """A file a video: no speech in every third, an ocr of NaN in every fourth."""
    rng = np.random.default_rng(0)
    for i, video in enumerate(videos):
        path = root / "vid_feat_files" / "mult_h5" / video[0] / video[1] / video[2] / f"{video}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for expert, width in MMT.items():
                n = int(rng.integers(1, 6))
                values = rng.normal(size=(n, width)).astype(np.float32)
                if expert == "speech" and i % 3 == 0:
                    continue
                if expert == "ocr" and i % 4 == 0:
                    values[:] = np.nan
                file[f"features.{expert}"] = values
                file[f"features_t.{expert}"] = np.arange(n)[:, None] + np.array([0.0, 1.0])
            for j, said in enumerate(s["caption"] for s in sentences if s["video_id"] == video):
                words = np.array(said.split(), object)
                file.create_dataset(f"raw_captions.{j}", data=words, dtype=h5py.string_dtype())


def _ce(root, videos):
    """A pickle an expert: averages (C,), and speech (n, C), NaN where it is missing."""
    rng = np.random.default_rng(1)
    for name, width in CE.items():
        path = root / "structured-symlinks" / f"{name}.pickle"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = width in (2048, 1024)
        content = {v: rng.normal(size=width if whole else (3, width)).astype(np.float32) for v in videos}
        if not whole:
            content[videos[0]] = float("nan")
        path.write_bytes(pickle.dumps(content))


def imported(place, source):
    """{expert: store} of a dump."""
    result = command(
        "store", "import", source, place / source, "--dataset", "msrvtt", "--data", place / "data", "--features",
        place / "features",
    )  # fmt: skip
    paths = [line for line in result.stdout.splitlines() if line.endswith(".zarr")]
    names = [path.rpartition("/")[2].removesuffix(".zarr").removeprefix(f"{source}_") for path in paths]
    return dict(zip(names, paths, strict=True))


def trained(place, stores, run, *options):
    experts = [part for name, path in stores.items() for part in ("--expert", f"{name}={path}")]
    text = ["--text", place / "features" / "msrvtt" / "words.zarr"]
    return command("train-head", "t2vlad", *text, *experts, "--out", run, *SMALL, *options)


@pytest.mark.parametrize("source", ["mmt", "ce"])
def test_a_published_dump_is_imported_trained_on_and_evaluated(place, tmp_path, source):
    stores = imported(place, source)
    assert len(stores) == len({"mmt": MMT, "ce": CE}[source])
    run = tmp_path / "run"
    told = trained(place, stores, run).output
    for name, path in stores.items():
        store = open_store(path)
        assert store.sealed and (store.status() == FAILED).sum() == 1  # LOST
        assert f"{name}: imported from {source} ({name}" in told and "declared, not verified" in told
    assert "training: 8 clips with 160 captions" in told
    facts = json.loads((run / "run.json").read_text())
    recipes = [facts["stores"][name]["recipe_fields"]["imported"] for name in stores]
    assert all(one["from"] == source and one["declared"]["content"].startswith("sha256:") for one in recipes)
    widths = {"mmt": MMT, "ce": {"imagenet.senet154-avg": 2048, "speech.speech-w2v": 300}}[source]
    sizes = dict(zip(facts["head"]["config"]["experts"], facts["head"]["config"]["expert_channels"], strict=True))
    assert widths.items() <= sizes.items()
    kept = json.loads((run / "metrics.json").read_text())
    assert kept["texts"] == 40 and kept["videos"] == 2 and kept["t2v"]["R@5"] == 100  # two videos
    assert all(n == 2 for name, n in kept["experts"].items() if name in ("rgb", "face", "i3d.i3d-avg"))
    assert sum(source in name for name in kept["unknown_ancestors"]) == len(stores)
    found = json.loads(command("evaluate", run, "--split", "test", "--json").stdout)
    assert found["texts"] == 80 and found["videos"] == 4 and found["video_coverage"] == 1
    assert 0 <= found["t2v"]["R@1"] <= 100 and found["v2t"]["R@10"] >= found["v2t"]["R@1"]


def test_what_the_dump_lacks_is_masked(place):
    stores = imported(place, "mmt")
    speech = open_store(stores["speech"])
    status = dict(zip(speech.rows["video"].tolist(), speech.status().tolist(), strict=True))
    names = [str(name) for name in speech.videos["name"]]
    assert [names[video] for video, code in status.items() if code == FAILED] == [LOST]
    assert sum(code == ABSENT for code in status.values()) == 5  # every third of 13
    caption = open_store(stores["rgb"]).texts["caption"][0]
    assert len(open_store(stores["rgb"]).texts["caption"]) == 280 and " " in str(caption)


def test_a_dump_brings_its_own_captions_where_there_are_no_annotations(place, tmp_path):
    """Under another name the videos and captions are the dump's; it has no splits, and that is said."""
    command("store", "import", "mmt", place / "mmt", "--dataset", "mine", "--experts", "rgb", "--features", tmp_path)
    store = open_store(tmp_path / "mine" / "mmt_rgb.zarr")
    assert len(store.texts["caption"]) == 260 and len(store.clips["id"]) == 13
    arguments = ["--text", f"hftext:{place / 'bert'}", "--expert", f"rgb={store.path}", "--out", tmp_path / "run"]
    result = CliRunner().invoke(main, ["train-head", "t2vlad", *(str(part) for part in (*arguments, *SMALL))])
    assert result.exit_code == 2 and "no clip is in split 'train'" in result.output
