"""SequenceDataset: experts of videos, clips, rows and windows as padded sequences, against plain loops."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from store_samples import fill, sent_to_a_worker

from errors import UserError
from stores import (
    ABSENT,
    FAILED,
    OK,
    PENDING,
    ArraySpec,
    ClipDataset,
    Manifest,
    SequenceDataset,
    Store,
    create_store,
    extend,
    open_store,
    pack,
    pad_sequences,
    plan_layout,
    prefetch,
    unpack_text,
)
from stores.serve import make_server

SECONDS = [7, 4, 9, 5]  # of the videos
NAMES = np.array([f"v{i}" for i in range(4)], object)
CAPTIONS = ["a cat", "a dog runs", "rain", "he cooks", "an ü", "six"]
CLIPS = {
    "id": np.array([f"c{i}" for i in range(5)], object),
    "video": np.array([0, 0, 1, 2, 3], np.int32),
    "start_s": np.array([0.0, 3.2, 1.0, 2.3, 0.0]),
    "stop_s": np.array([3.0, 3.4, 3.0, 8.0, np.nan]),
    "verb": np.arange(5, dtype=np.int32),
    "split": np.array(["train", "train", "val", "train", "val"], object),
}
TEXTS = {"clip": np.array([0, 0, 2, 3, 4, 4], np.int32), "caption": np.array(CAPTIONS, object)}
VECTOR = {"vector": ArraySpec((6,), "float16")}
WORDS = {
    "text": ArraySpec((64,), "uint8"),
    "n_text": ArraySpec((), "int32"),
    "tokens": ArraySpec((4, 5), "float32"),
    "n_tokens": ArraySpec((), "int32"),
}
FACES = {
    "roi": ArraySpec((3, 7), "float16"),
    "boxes": ArraySpec((3, 4), "float32"),
    "n_boxes": ArraySpec((), "int32"),
}


def segments(videos=range(4), width=1.0):
    """One row a second of each video, `width` seconds long."""
    video = np.concatenate([np.full(SECONDS[v], v) for v in videos])
    k = np.concatenate([np.arange(SECONDS[v]) for v in videos])
    rows = {"video": video.astype(np.int32), "clip": np.full(len(k), -1, np.int32), "k": k.astype(np.int32)}
    return rows | {"draw": np.zeros(len(k), np.int16), "start_s": k.astype(float), "stop_s": k + width}


def of_clips(clips, ks):
    """Rows that belong to clips."""
    clips = np.asarray(clips)
    rows = {"video": CLIPS["video"][clips], "clip": clips.astype(np.int32), "k": np.array(ks, np.int32)}
    rows |= {
        "draw": np.zeros(len(clips), np.int16),
        "start_s": CLIPS["start_s"][clips],
        "stop_s": CLIPS["stop_s"][clips],
    }
    return rows


def make(folder, name, rows, arrays, status=None, dataset="toy", counts=None):
    """A store of random values; counts: {count array: values}."""
    manifest = Manifest(
        arrays, plan_layout(arrays, 8, batch_size=4), {"network": {"name": name}}, dataset={"name": dataset}
    )
    store = create_store(folder / f"{name}.zarr", manifest, rows, CLIPS, {"name": NAMES, "path": NAMES}, texts=TEXTS)
    rng = np.random.default_rng(len(name))
    n = len(rows["video"])
    status = np.full(n, OK, np.uint8) if status is None else np.asarray(status, np.uint8)
    values = {}
    for array, spec in arrays.items():
        values[array] = rng.random((n, *spec.row_shape)).astype(spec.dtype)
        if array.startswith("n_"):
            values[array] = (counts or {}).get(array, rng.integers(0, 4, n)).astype(np.int32)
    if "text" in arrays:
        for i in range(n):
            words = json.dumps([{"word": f"é{i}"}] * (i % 3), separators=(",", ":")).encode()
            values["text"][i] = np.frombuffer(words.ljust(64, b"\0"), np.uint8)
    if "boxes" in arrays:
        values["boxes"] = values["boxes"] * 300 + 1
    for v in range(4):
        store.write_probe(f"v{v}", {"fps": 25.0, "width": 320 + v, "height": 240})
    for unit in store.units:
        here = slice(unit.start, unit.stop)
        why = {int(row): ("damaged", "x") for row in np.arange(unit.start, unit.stop)[status[here] == FAILED]}
        store.commit(unit, {name: column[here] for name, column in values.items()}, status[here], why)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    sound = np.full(25, OK)
    sound[:7] = ABSENT  # video 0 has no sound
    sound[12] = FAILED
    return {
        "rgb": make(folder, "rgb", segments(), VECTOR),
        "audio": make(folder, "audio", segments(), VECTOR, sound),
        "ocr": make(folder, "ocr", segments(range(3)), WORDS, counts={"n_tokens": np.arange(20) % 6}),
        "face": make(folder, "face", segments(), FACES),
        "text": make(folder, "text", of_clips([0, 0, 2, 3, 4, 4], [0, 1, 0, 0, 0, 1]), WORDS),
        "i3d": make(folder, "i3d", of_clips([0, 1, 2, 3, 4], [0] * 5), VECTOR),
    }


def tokens_of(store, rows, name, counter=None):
    """The tokens of these rows in order, one by one."""
    out = []
    for row in rows:
        if store.status()[row] != OK:
            continue
        values = store.read(name, [row])[0]
        out += [values] if counter is None else list(values[: store.read(counter, [row])[0]])
    return out


def test_videos(stores):
    some = {role: stores[role] for role in ("rgb", "audio", "ocr", "face")}
    data = SequenceDataset(some)
    batch = data.batch([2, 0, 3])
    assert len(data) == 4 and batch["video"].tolist() == [2, 0, 3] and batch["clip"].tolist() == [-1] * 3
    for i, video in enumerate([2, 0, 3]):
        for role, name, counter in (
            ("rgb", "vector", None), ("audio", "vector", None),
            ("ocr", "tokens", "n_tokens"), ("face", "roi", "n_boxes"),
        ):  # fmt: skip
            store, got = stores[role], {key: value[i] for key, value in batch[role].items()}
            rows = np.flatnonzero(store.rows["video"] == video)
            expected = tokens_of(store, rows, name, counter)
            assert got["mask"].sum() == len(expected) and got["mask"][: len(expected)].all()
            assert got["present"] == bool(expected)
            if expected:
                assert np.array_equal(got[name][: len(expected)], expected)
            assert not got[name][len(expected) :].any() and not got["time_s"][len(expected) :].any()
            starts = tokens_of(store, rows, name, counter)  # as many; their times:
            times = [store.rows["start_s"][r] for r in rows for _ in tokens_of(store, [r], name, counter)]
            assert got["time_s"][: len(starts), 0].tolist() == times
    assert batch["audio"]["present"].tolist() == [True, False, True]  # video 0 has no sound
    assert batch["ocr"]["present"].tolist() == [True, True, False]  # the store knows no video 3
    assert batch["rgb"]["vector"].dtype == np.float16 and batch["ocr"]["tokens"].dtype == np.float32
    size = np.array([322, 240, 322, 240])
    pixels = tokens_of(stores["face"], np.flatnonzero(stores["face"].rows["video"] == 2), "boxes", "n_boxes")
    assert np.allclose(batch["face"]["boxes"][0][: len(pixels)], pixels / size, rtol=1e-6)
    assert data.coverage() == {
        "items": 4, "present": {"rgb": 4, "audio": 3, "ocr": 3, "face": 4},
        "failed": {"audio": 1}, "absent": {"audio": 7}, "pending": {},
    }  # fmt: skip


def test_clips_by_centre_and_by_clip(stores):
    data = SequenceDataset({role: stores[role] for role in ("i3d", "rgb", "text")}, by="clip")
    batch = data.batch(range(5))
    seen = [batch["rgb"]["time_s"][i][batch["rgb"]["mask"][i]][:, 0].tolist() for i in range(5)]
    assert seen == [[0, 1, 2], [3], [1, 2], [2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4]]
    # Clip 1 is 0.2 s and holds no centre: it has the row that saw its middle. Clip 4 has no end.
    assert batch["i3d"]["mask"].sum(1).tolist() == [1] * 5
    assert np.array_equal(batch["i3d"]["vector"][:, 0], stores["i3d"].read("vector", range(5)))
    words = [len(tokens_of(stores["text"], np.flatnonzero(CLIPS["id"][stores["text"].rows["clip"]] == c), "tokens",
                           "n_tokens")) for c in CLIPS["id"]]  # fmt: skip
    assert batch["text"]["mask"].sum(1).tolist() == words and not batch["text"]["present"][1]
    assert batch["labels"]["verb"].tolist() == [0, 1, 2, 3, 4]
    assert data.captions(0) == ["a cat", "a dog runs"] and data.captions(1) == [] and data.captions(4)[0] == "an ü"
    assert len(SequenceDataset({"rgb": stores["rgb"]}, by="clip", split="train")) == 3


def test_captions_with_the_experts_of_their_clips(stores):
    data = SequenceDataset({"text": stores["text"], "rgb": stores["rgb"]}, by="row", split="val")
    assert data.clips.tolist() == [2, 4, 4] and data.labels["verb"].tolist() == [2, 4, 4]
    batch = data.batch([2, 0])
    for i, row in enumerate([5, 2]):
        expected = tokens_of(stores["text"], [row], "tokens", "n_tokens")
        assert batch["text"]["mask"][i].sum() == len(expected)
        assert np.array_equal(batch["text"]["tokens"][i][: len(expected)], np.array(expected).reshape(-1, 5))
    assert batch["rgb"]["mask"].sum(1).tolist() == [5, 2]


def test_windows_of_ones_own(stores):
    windows = {"video": ["v2", "v0", 2], "start_s": [1.5, 6.0, 20.0], "stop_s": [4.5, 99.0, 30.0]}
    batch = SequenceDataset({"rgb": stores["rgb"]}, windows).batch([0, 1, 2])
    seen = [batch["rgb"]["time_s"][i][batch["rgb"]["mask"][i]][:, 0].tolist() for i in range(3)]
    assert seen == [[1, 2, 3], [6], []] and batch["rgb"]["present"].tolist() == [True, True, False]
    assert batch["rgb"]["vector"].shape == (3, 3, 6)


@pytest.mark.parametrize("pick", ["even", "random", "first"])
def test_at_most_so_many_tokens(stores, pick):
    some = {"rgb": stores["rgb"], "ocr": stores["ocr"]}
    whole = SequenceDataset(some).batch(range(4))
    data = SequenceDataset(some, max_tokens={"rgb": 4, "ocr": 6}, pick=pick, seed=3)
    few = data.batch(range(4))
    assert few["rgb"]["vector"].shape == (4, 4, 6) and few["ocr"]["tokens"].shape == (4, 6, 5)
    for role, name in (("rgb", "vector"), ("ocr", "tokens")):
        for i in range(4):
            every = whole[role][name][i][whole[role]["mask"][i]].tolist()
            chosen = [every.index(token) for token in few[role][name][i][few[role]["mask"][i]].tolist()]
            assert len(chosen) == min(len(every), 4 if role == "rgb" else 6) and chosen == sorted(set(chosen))
            if len(every) > len(chosen) and pick == "first":
                assert chosen == list(range(len(chosen)))
            if len(every) > len(chosen) and pick == "even":
                assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1 and chosen[0] <= len(every) - 1 - chosen[-1]
    if pick == "random":
        alone = data.batch([2])["rgb"]["vector"][0]
        assert np.array_equal(alone, few["rgb"]["vector"][2])  # whatever else is in the batch
        choices = set()
        for data.epoch in range(20):
            choices.add(data.batch([2])["rgb"]["time_s"][0, :, 0].astype(int).tobytes())
        assert len(choices) > 10
        every = np.frombuffer(b"".join(choices), int)
        assert set(every) == set(range(9))


def test_items_collated_are_the_batch(stores):
    some = {role: stores[role] for role in ("i3d", "audio", "ocr", "face")}
    data = SequenceDataset(some, by="clip")
    items = data.__getitems__([4, 0, 1])
    assert items[0]["audio"]["vector"].shape[0] == len(items[0]["audio"]["mask"])
    assert items[1]["audio"]["vector"].shape == (0, 6) and not items[1]["audio"]["present"]
    collated, batch = pad_sequences(items), data.batch([4, 0, 1])

    def same(one, other):
        assert set(one) == set(other)
        for key in one:
            if isinstance(one[key], dict):
                same(one[key], other[key])
            else:
                assert one[key].dtype == other[key].dtype, key
                assert np.array_equal(one[key], other[key], equal_nan=one[key].dtype.kind == "f"), key

    same(collated, batch)
    same(pad_sequences([data[-1]]), data.batch([4]))
    assert data.batch([])["i3d"]["vector"].shape == (0, 1, 6)
    with pytest.raises(IndexError):
        data[5]


def test_several_kinds_of_one_store_are_several_roles(stores):
    ocr = stores["ocr"]
    with pytest.raises(UserError, match="cannot be one sequence"):
        SequenceDataset({"ocr": ocr}, arrays={"ocr": ["tokens", "text"]})
    data = SequenceDataset({"ocr": ocr, "words": ocr}, arrays={"words": ["text"]})
    batch = data.batch([0])
    assert batch["words"]["mask"].sum() == 7 and batch["ocr"]["mask"].sum() != 7
    said = unpack_text(batch["words"]["text"][0])
    assert said[:3] == [[], [{"word": "é1"}], [{"word": "é2"}] * 2]


def test_unknown_times_are_kept(tmp_path):
    rows = segments()
    rows["start_s"][:7], rows["stop_s"][:7] = np.nan, np.nan
    store = make(tmp_path, "imported", rows, VECTOR)
    batch = SequenceDataset({"x": store}).batch([0, 1])
    assert np.array_equal(batch["x"]["vector"][0], store.read("vector", range(7)))
    assert np.isnan(batch["x"]["time_s"][0]).all() and not np.isnan(batch["x"]["time_s"][1]).any()


def test_rows_of_unknown_time_belong_to_clips_that_are_whole_videos(tmp_path):
    """As of published features without times: beside them clips that are cut out of their video have nothing."""
    rows = segments()
    unknown = np.isin(rows["video"], [0, 3])  # clips 0 and 1 are parts of video 0, clip 4 is video 3
    rows["start_s"][unknown], rows["stop_s"][unknown] = np.nan, np.nan
    store = make(tmp_path, "imported", rows, VECTOR)
    data = SequenceDataset({"x": store}, by="clip")
    batch = data.batch(range(5))
    assert data.coverage()["present"] == {"x": 3} and batch["x"]["mask"].sum(axis=1).tolist() == [0, 0, 2, 6, 5]
    assert np.array_equal(batch["x"]["vector"][4][:5], store.read("vector", range(20, 25)))
    assert np.array_equal(batch["x"]["vector"][2][:2], store.read("vector", [8, 9]))
    alone = SequenceDataset({"x": store}, by="clip", split="val").batch([1])
    assert np.array_equal(alone["x"]["vector"][0], store.read("vector", range(20, 25)))


def test_pending_rows_are_refused_or_masked(tmp_path):
    status = np.full(25, OK)
    status[8] = PENDING
    store = make(tmp_path, "part", segments(), VECTOR, status)
    with pytest.raises(UserError, match=r"1 of 4 wanted items .* pending \(first: video v1\)"):
        SequenceDataset({"x": store})
    data = SequenceDataset({"x": store}, allow_incomplete=True)
    assert data.batch([1])["x"]["mask"].sum() == 3 and data.coverage()["pending"] == {"x": 1}
    assert len(SequenceDataset({"x": store}, split="train")) == 2  # videos 0 and 2: it is not among them


def test_wrong_arguments(tmp_path, stores):
    rgb = stores["rgb"]
    for options, message in (
        ({"by": "frame"}, "by must be"),
        ({"by": {"video": []}}, "windows are"),
        ({"pick": "best"}, "pick must be"),
        ({"split": "test"}, "no clip is in split"),
        ({"arrays": {"rgb": ["map"]}}, "no array 'map'"),
        ({"max_tokens": {"flow": 3}}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
    ):
        with pytest.raises(UserError, match=message):
            SequenceDataset({"rgb": rgb}, **options)
    with pytest.raises(UserError, match="other than"):
        SequenceDataset({"video": rgb})
    with pytest.raises(UserError, match="different datasets"):
        SequenceDataset({"rgb": rgb, "x": make(tmp_path, "other", segments(), VECTOR, dataset="else")})
    uncounted = make(tmp_path, "uncounted", segments(), {"tokens": ArraySpec((4, 5), "float32")})
    with pytest.raises(UserError, match="no array 'n_tokens'"):
        SequenceDataset({"x": uncounted})


def test_one_read_a_store_and_array(stores, monkeypatch):
    data, reads = SequenceDataset({role: stores[role] for role in ("rgb", "ocr", "face")}), []
    original = Store.read
    monkeypatch.setattr(Store, "read", lambda self, name, *rest: reads.append(name) or original(self, name, *rest))
    data.batch([0, 1, 2, 3, 0])
    assert sorted(reads) == ["boxes", "roi", "tokens", "vector"]
    kept = SequenceDataset({role: stores[role] for role in ("rgb", "ocr", "face")}, keep_bytes=1 << 20)
    reads.clear()
    assert np.array_equal(kept.batch([1, 2])["face"]["roi"], data.batch([1, 2])["face"]["roi"])
    assert sorted(reads) == ["boxes", "roi", "tokens", "vector"]  # those of the other
    again = sent_to_a_worker(kept)
    assert np.array_equal(again.batch([3])["rgb"]["vector"], data.batch([3])["rgb"]["vector"])


def test_a_grown_store(tmp_path):
    store = make(tmp_path, "grown", segments(range(3)), VECTOR)
    new = segments([3])
    store = extend(store.path, new, CLIPS, {"name": NAMES, "path": NAMES}, TEXTS)
    fill(store, [unit for unit in store.units if (store.status(unit) == PENDING).any()])
    store = open_store(store.path)
    batch = SequenceDataset({"x": store}, by="clip").batch(range(5))
    assert batch["x"]["mask"].sum(1).tolist() == [3, 1, 2, 6, 5]
    by_row = SequenceDataset({"x": store}, by="row")
    assert len(by_row) == 25 and set(by_row.videos) == {0, 1, 2, 3}


def test_the_same_from_hdf5(stores, tmp_path):
    packed = {}
    for role in ("rgb", "ocr", "face"):
        pack(stores[role].path, tmp_path / f"{role}.h5")
        packed[role] = tmp_path / f"{role}.h5"
    one = SequenceDataset({role: stores[role] for role in packed}, by="clip", max_tokens=5).batch(range(5))
    other = SequenceDataset(packed, by="clip", max_tokens=5).batch(range(5))
    for role in packed:
        assert all(np.array_equal(one[role][name], other[role][name]) for name in one[role])


def test_read_ahead_in_order(stores):
    data = SequenceDataset({"rgb": stores["rgb"], "ocr": stores["ocr"]})
    batches = [[i % 4, (i + 1) % 4] for i in range(30)]
    for indices, batch in zip(batches, prefetch(data, batches, workers=3, ahead=5), strict=True):
        assert batch["item"].tolist() == indices
        assert np.array_equal(batch["rgb"]["vector"], data.batch(indices)["rgb"]["vector"])
    with pytest.raises(IndexError):
        list(prefetch(data, [[0], [9], [1]]))


FORKED = """
import os, sys
import numpy as np
from stores import ClipDataset, SequenceDataset
rgb, clip = sys.argv[1:]
data = [SequenceDataset({"rgb": rgb}), ClipDataset({"i3d": clip}, "val")]
assert "torch" not in sys.modules and "tensorstore" not in sys.modules
child = os.fork()
values = [data[0].batch([1])["rgb"]["vector"].sum(), data[1].batch([0])["i3d"]["vector"].sum()]
if child == 0:
    os._exit(0 if np.isfinite(values).all() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_before_the_first_read(stores):
    paths = [str(stores[role].path) for role in ("rgb", "i3d")]
    subprocess.run([sys.executable, "-c", FORKED, *paths], check=True)


def test_a_data_loader(stores):
    torch = pytest.importorskip("torch")
    data = SequenceDataset({"rgb": stores["rgb"].path, "ocr": stores["ocr"].path}, max_tokens=4)
    loader = torch.utils.data.DataLoader(
        data, batch_size=3, num_workers=1, multiprocessing_context="spawn", collate_fn=pad_sequences
    )
    first, second = list(loader)
    assert np.array_equal(first["rgb"]["vector"], data.batch([0, 1, 2])["rgb"]["vector"])
    assert second["ocr"]["mask"].shape == (1, 1) and not second["ocr"]["present"].any()


def test_clip_dataset_on_a_folder_and_a_file(stores, tmp_path):
    pack(stores["i3d"].path, tmp_path / "clip.h5")
    pair = ClipDataset({"a": stores["i3d"].path, "b": str(tmp_path / "clip.h5")}, "val", keep_bytes=1 << 20)
    batch = pair.batch([0, 1])
    assert np.array_equal(batch["a"]["vector"], batch["b"]["vector"])


def test_the_same_over_http(stores):
    with make_server(stores["rgb"].path.parent, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = {role: f"{server.url}{role}.zarr" for role in ("rgb", "ocr", "face")}
        there = SequenceDataset(remote, by="clip").batch(range(5))
        clips = ClipDataset({"i3d": f"{server.url}i3d.zarr"}, "val").batch([0, 1])
        server.shutdown()
    here = SequenceDataset({role: stores[role] for role in remote}, by="clip").batch(range(5))
    for role in remote:
        assert all(np.array_equal(here[role][name], there[role][name]) for name in here[role])
    assert np.array_equal(clips["i3d"]["vector"], stores["i3d"].read("vector", [2, 4]))
