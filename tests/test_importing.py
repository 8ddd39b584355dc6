"""Importers of published expert features: files made in the layouts of MMT and collaborative-experts."""

import pickle

import h5py
import numpy as np
import pytest

from errors import UserError
from extract.datasets import Dataset
from pipelines.importing import import_features, read_mmt
from stores import ABSENT, FAILED, OK, open_store

RNG = np.random.default_rng(0)
DIMS = {"s3d": 6, "rgb": 5, "face": 4, "vggish": 3}
HAVE = {  # video -> expert -> number of features
    "video0": {"s3d": 3, "rgb": 7, "face": 2, "vggish": 2},
    "video12": {"s3d": 1, "rgb": 2, "face": 0, "vggish": 4},  # face: an empty array
    "video7": {"s3d": 2, "rgb": 1, "vggish": 1},  # no face at all
    "video9": {"s3d": 2, "rgb": 1, "face": -1, "vggish": 1},  # face: NaN
}


@pytest.fixture(scope="module")
def mmt(tmp_path_factory):
    """(root, {video: {expert: features}}) of a dump in MMT's layout."""
    root = tmp_path_factory.mktemp("mmt")
    made = {}
    for video, experts in HAVE.items():
        path = root / "vid_feat_files" / "mult_h5" / "v" / "i" / "d" / f"{video}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        made[video] = {}
        with h5py.File(path, "w") as file:
            for expert, n in experts.items():
                values = RNG.normal(size=(abs(n), DIMS[expert])).astype(np.float32)
                if n < 0:
                    values[:] = np.nan
                elif n:
                    made[video][expert] = values
                file[f"features.{expert}"] = values
                start = 1.5 * np.arange(abs(n) + (expert == "s3d"))[:, None]  # s3d: one time too many
                file[f"features_t.{expert}"] = start + [0.0, 1.0]
            words = np.array([b"a", b"man", "cuts à".encode()], object)
            file.create_dataset("raw_captions.0", data=words, dtype=h5py.string_dtype())
            file.create_dataset("raw_captions.10", data=np.array([b"late"], "S4"))
            file.create_dataset("raw_captions.2", data=np.array([video.encode()], object), dtype=h5py.string_dtype())
            file["raw_captions_t.0"] = np.zeros((4, 2))
    return root, made


def imported(path):
    """{video: (status, features, start_s, stop_s)} of a store."""
    store = open_store(path)
    found = {}
    for index, name in enumerate(store.videos["name"]):
        rows = np.flatnonzero(store.rows["video"] == index)
        assert store.rows["k"][rows].tolist() == list(range(len(rows)))
        values = store.read("vector", rows, missing="nan")
        found[str(name)] = store.status()[rows], values, store.rows["start_s"][rows], store.rows["stop_s"][rows]
    return found


def make_dataset(names, name="msrvtt"):
    n = len(names)
    return Dataset(
        name=name,
        root="",
        videos={k: np.array(v, object) for k, v in {"name": names, "path": [""] * n, "kind": [""] * n}.items()},
        clips={
            "id": np.array([f"{v} clip" for v in names], object),
            "video": np.arange(n, dtype=np.int32),
            "start_s": np.zeros(n),
            "stop_s": np.full(n, 9.0),
            "split": np.array(["train"] * n, object),
        },
        texts={"clip": np.zeros(2, np.int32), "caption": np.array(["one", "two"], object)},
    )


# -- MMT ---------------------------------------------------------------------------------------------------------------


def test_read_mmt(mmt):
    root, made = mmt
    found = {video: (features, times) for video, features, times in read_mmt(root, "s3d")}
    assert list(found) == sorted(HAVE)
    for video, (features, times) in found.items():
        assert features.dtype == np.float32 and np.array_equal(features, made[video]["s3d"])
        assert times.tolist() == [[1.5 * i, 1.5 * i + 1] for i in range(len(features))]
    faces = dict((video, features) for video, features, _ in read_mmt(root, "face", ["video9", "video0", "video7"]))
    assert list(faces) == ["video9", "video0", "video7"]
    assert faces["video9"] is None is faces["video7"] and np.array_equal(faces["video0"], made["video0"]["face"])
    with pytest.raises(UserError, match=r"video3\.h5: no such file"):
        next(read_mmt(root, "s3d", ["video3"]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_import_mmt(mmt, tmp_path, dtype):
    root, made = mmt
    lines = []
    paths = import_features("mmt", root, "msrvtt", None, tmp_path, dtype=dtype, announce=lines.append)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [f"msrvtt/mmt_{e}.zarr" for e in sorted(DIMS)]
    assert "2 features of 4 values; 3 videos without face, 0 rows failed" in lines[0]
    for path, expert in zip(paths, sorted(DIMS), strict=True):
        store = open_store(path)
        assert store.sealed and store.manifest.arrays["vector"].dtype == dtype
        assert store.manifest.dataset["axis"] == "segment" and store.manifest.lineage[0]["dataset"] == "unknown"
        said = store.manifest.recipe["imported"]
        assert (said["from"], said["expert"]) == ("mmt", expert) and said["declared"]["content"].startswith("sha256:")
        for video, (status, values, start, stop) in imported(path).items():
            if expert not in made[video]:
                assert status.tolist() == [ABSENT] and np.isnan(values).all() and np.isnan(start).all()
                continue
            assert (status == OK).all() and np.array_equal(values, made[video][expert].astype(dtype))
            k = np.arange(len(values))
            wanted = {"s3d": (1.5 * k, 1.5 * k + 1), "vggish": (1.5 * k, 1.5 * k + 1), "rgb": (0.2 * k, 0.2 * k + 0.2)}
            nan = np.full(len(k), np.nan)
            np.testing.assert_allclose((start, stop), wanted.get(expert, (nan, nan)))


def test_captions_of_the_dump_and_times(mmt, tmp_path):
    root, _ = mmt
    (path,) = import_features("mmt", root, "msrvtt", ["rgb"], tmp_path)
    store = open_store(path)
    captions = [c for clip, c in zip(store.texts["clip"], store.texts["caption"], strict=True) if clip == 1]
    assert store.clips["id"][1] == "video12" and captions == ["a man cuts à", "video12", "late"]
    assert store.rows_between("video0", 0.0, 0.45).tolist() == [0, 1]


def test_import_into_a_dataset(mmt, tmp_path):
    """Its clips and captions; a video that the dump lacks is failed, with the reason, and nothing is made up."""
    root, made = mmt
    (path,) = import_features("mmt", root, make_dataset(["video7", "video1", "video0"]), ["rgb"], tmp_path)
    store = open_store(path)
    found = imported(path)
    assert [found[v][0].tolist() for v in ("video7", "video1", "video0")] == [[OK], [FAILED], [OK] * 7]
    assert store.failures()[1] == ("not_in_dump", "no file v/i/d/video1.h5")
    assert np.array_equal(found["video0"][1], made["video0"]["rgb"].astype(np.float16))
    assert store.texts["caption"].tolist() == ["one", "two"] and store.clips["split"].tolist() == ["train"] * 3
    with pytest.raises(UserError, match="no video in common for rgb: the dataset has v_a, the dump video0"):
        import_features("mmt", root, make_dataset(["v_a"]), ["rgb"], tmp_path / "other")


@pytest.mark.parametrize("depth", ["", "../../../../"])
def test_no_name_of_a_video_leads_out_of_the_dump(mmt, tmp_path, depth):
    """A file that is not the dump's, by its whole path and by a way up: it is not read, and the row says why."""
    root, _ = mmt
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["features.rgb"] = np.ones((1, 5), np.float32)
    name = str(tmp_path / "outside") if not depth else f"v/i/d/{depth}" + str(tmp_path / "outside").lstrip("/")
    (path,) = import_features("mmt", root, make_dataset(["video0", name, "..", "/"]), ["rgb"], tmp_path / "out")
    found = imported(path)
    assert [found[v][0].tolist() for v in (name, "..", "/")] == [[FAILED]] * 3
    assert {code for code, _ in open_store(path).failures().values()} == {"not_in_dump"}
    with pytest.raises(UserError, match="has no video"):
        next(read_mmt(root, "rgb", [name]))


def test_import_resumes_and_refuses_another_dump(mmt, tmp_path, monkeypatch):
    from pipelines import importing

    root, _ = mmt
    monkeypatch.setattr(importing, "UNIT_ROWS", 2)
    whole = import_features("mmt", root, "msrvtt", ["s3d"], tmp_path / "whole")[0]
    fill, calls = importing._fill, []

    def stops_early(store, unit, *rest):
        calls.append(unit.index)
        if len(calls) == 3:
            raise KeyboardInterrupt
        fill(store, unit, *rest)

    monkeypatch.setattr(importing, "_fill", stops_early)
    with pytest.raises(KeyboardInterrupt):
        import_features("mmt", root, "msrvtt", ["s3d"], tmp_path)
    (path,) = import_features("mmt", root, "msrvtt", ["s3d"], tmp_path)
    assert calls == [0, 1, 2, 2, 3] and open_store(path).sealed
    for video, (status, values, *_) in imported(path).items():
        assert (status == OK).all() and np.array_equal(values, imported(whole)[video][1])
    before = (path / "zarr.json").read_bytes()
    import_features("mmt", root, "msrvtt", ["s3d"], tmp_path)  # finished: nothing happens
    assert (path / "zarr.json").read_bytes() == before
    with pytest.raises(UserError, match="is another store: .*dtype"):
        import_features("mmt", root, "msrvtt", ["s3d"], tmp_path, dtype="float32")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("features.rgb", np.zeros((2, 3, 4)), r"video5\.h5, features\.rgb: expected features \(n, C\) or \(C,\)"),
        ("features.rgb", np.array([b"x"]), r"video5\.h5, features\.rgb: expected features"),
        ("features.rgb/inner", np.zeros(3), r"video5\.h5, features\.rgb: expected a dataset, found a group"),
        ("features.rgb", np.ones((2, 3)), "rgb: video video5 has features of 3 values, video video0 of 5"),
        ("features_t.s3d", np.zeros((1, 2)), r"video5\.h5, features_t\.s3d: expected 2 rows of start and stop"),
        ("features_t.s3d", np.zeros((2, 3)), r"video5\.h5, features_t\.s3d: expected times"),
        ("raw_captions.0", np.zeros(3), r"video5\.h5, raw_captions\.0: expected words, got float64"),
    ],
)
def test_damaged_mmt_files_are_named(tmp_path, key, value, message):
    folder = tmp_path / "vid_feat_files" / "mult_h5" / "v" / "i" / "d"
    folder.mkdir(parents=True)
    for name, changes in (("video0", {}), ("video5", {key: value})):
        good = {"features.rgb": np.ones((1, 5)), "features.s3d": np.ones((2, 2)), "features_t.s3d": np.zeros((2, 2))}
        good = {k: v for k, v in good.items() if not any(c.startswith(f"{k}/") for c in changes)}
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for k, v in (good | changes).items():
                file[k] = v
    with pytest.raises(UserError, match=message):
        import_features("mmt", tmp_path, "msrvtt", None, tmp_path / "out")


def test_files_that_are_no_hdf5_and_wrong_roots(mmt, tmp_path):
    root, _ = mmt
    folder = tmp_path / "mult_h5" / "v" / "i" / "d"
    folder.mkdir(parents=True)
    (folder / "video0.h5").write_bytes(b"no HDF5" * 99)
    with pytest.raises(UserError, match=r"video0\.h5 cannot be read as HDF5"):
        import_features("mmt", tmp_path / "mult_h5", "msrvtt", None, tmp_path / "out")
    with pytest.raises(UserError, match="no dump of MMT: expected .*vid_feat_files/mult_h5"):
        import_features("mmt", tmp_path / "nothing", "msrvtt")
    with pytest.raises(UserError, match="has no expert ocr; it has face, rgb, s3d, vggish"):
        import_features("mmt", root, "msrvtt", ["rgb", "ocr"], tmp_path / "out")
    with pytest.raises(UserError, match="from .*ce.*mmt.*, not 'hickle'"):
        import_features("hickle", root, "msrvtt")


# -- collaborative-experts ---------------------------------------------------------------------------------------------


@pytest.fixture
def ce(tmp_path):
    root = tmp_path / "ce" / "structured-symlinks"
    i3d = {v: RNG.normal(size=8).astype(np.float32) for v in ("video1", "video0")}
    speech = {"video0": RNG.normal(size=(3, 4)), "video1": float("nan"), "video2": np.zeros((0, 4))}
    for name, content in {
        "aggregated_i3d_25fps_256px_stride25_offset0_inner_stride1/i3d-avg.pickle": i3d,
        "aggregated_speech/speech-w2v.pickle": speech,
        "aggregated_text_feats/w2v.pickle": {"video0": [[1.0]]},
    }.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(pickle.dumps(content))
    return root.parent, i3d, speech


def test_import_ce(ce, tmp_path):
    root, i3d, speech = ce
    paths = import_features("ce", root, make_dataset(["video0", "video1", "video2"]), None, tmp_path, dtype="float32")
    assert [p.name for p in paths] == ["ce_i3d.i3d-avg.zarr", "ce_speech.speech-w2v.zarr"]
    first, second = (imported(path) for path in paths)
    assert [first[v][0].tolist() for v in first] == [[OK], [OK], [FAILED]]
    assert np.array_equal(first["video1"][1], i3d["video1"][None]) and np.isnan(first["video1"][2]).all()
    assert [second[v][0].tolist() for v in second] == [[OK] * 3, [ABSENT], [ABSENT]]
    assert np.array_equal(second["video0"][1], speech["video0"].astype(np.float32))
    declared = open_store(paths[0]).manifest.recipe["imported"]["declared"]
    assert (declared["fps"], declared["pixels"], declared["stride"], declared["pooling"]) == (25, 256, 25, "avg")
    (alone,) = import_features("ce", root, "msrvtt", ["i3d.i3d-avg"], tmp_path / "bare")
    assert open_store(alone).videos["name"].tolist() == ["video0", "video1"] and open_store(alone).texts is None


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"video0": Evil()}, "holds a call of"),
        ([1, 2], "expected features by video name, got list"),
        ({"video0": np.zeros((2, 2, 2))}, r"i3d-avg\.pickle, video0: expected features"),
        ({"video0": "words"}, r"i3d-avg\.pickle, video0: expected features"),
        ({"video0": float("nan")}, "no features of i3d.i3d-avg for any video"),
    ],
)
def test_damaged_pickles_are_named(ce, tmp_path, capsys, content, message):
    root, *_ = ce
    next(root.glob("*/*i3d*/*")).write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        import_features("ce", root, "msrvtt", ["i3d.i3d-avg"], tmp_path)
    assert "run" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no dump of collaborative-experts"):
        import_features("ce", tmp_path / "nothing", "msrvtt")
