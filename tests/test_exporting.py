"""Exports: what the named tools read, the way they read it; and back into a store, with the same values."""

import json
import os
import tarfile

import h5py
import numpy as np
import pytest

from errors import MachineError, UserError
from pipelines.exporting import export_features
from pipelines.formats import checked, find_format, list_formats, quoted, register_format, unquoted
from pipelines.importing import import_features
from stores import ABSENT, FAILED, OK, ArraySpec, Manifest, create_store, open_store, plan_layout, verify

VIDEOS = ("P01_01", "video 2 ü", "a.b/c%")
OF_MMT = ("P01_01", "video 2 ü", "msr.vtt")  # it files videos by the characters of their names
COUNTS = (5, 3, 4)
C = 6
FOLDER_FORMATS = ("npy", "actionformer", "ego4d", "webdataset", "mmt", "lfb", "mmaction_lfb", "rulstm")


def make(
    folder,
    name="i3d",
    *,
    videos=VIDEOS,
    step=1.0,
    window=1.0,
    status=None,
    arrays=None,
    start=0.0,
    dtype="float16",
    seed=0,
):
    """A store of the segment axis; {video: (features float32, start_s, stop_s)} of what it holds."""
    arrays = arrays or {"vector": ArraySpec((C,), dtype)}
    video = np.repeat(np.arange(len(VIDEOS), dtype=np.int32), COUNTS)
    k = np.concatenate([np.arange(n, dtype=np.int32) for n in COUNTS])
    rows = {"video": video, "clip": np.full(len(k), -1, np.int32), "k": k, "draw": np.zeros(len(k), np.int16)}
    rows |= {"start_s": start + step * k, "stop_s": start + step * k + window}
    clips = {
        "id": np.array(["c0", "c1", "c2"], object),
        "video": np.array([0, 1, 2], np.int32),
        "start_s": np.zeros(3),
        "stop_s": np.full(3, 9.0),
        "split": np.array(["train"] * 3, object),
    }
    table = {"name": np.array(videos, object), "path": np.array([""] * 3, object)}
    texts = {"clip": np.array([0, 0, 1, 2], np.int32), "caption": np.array(["a man", "cuts à", "b", "d"], object)}
    manifest = Manifest(
        arrays,
        plan_layout(arrays, 64, batch_size=2, unit_rows=4),
        {"network": {"name": name}, "dtype": dtype},
        dataset={"name": "d", "axis": "segment"},
    )
    store = create_store(folder / f"{name}.zarr", manifest, rows, clips, table, texts)
    rng = np.random.default_rng(seed)
    values = {n: rng.normal(size=(len(k), *spec.row_shape)).astype(spec.dtype) for n, spec in arrays.items()}
    status = np.full(len(k), OK) if status is None else np.asarray(status)
    for unit in store.units:
        mine = slice(unit.start, unit.stop)
        why = {int(i): ("damaged", "x") for i in range(unit.start, unit.stop) if status[i] == FAILED}
        store.commit(unit, {n: v[mine] for n, v in values.items()}, status[mine], why)
    store.seal()
    array = next(iter(arrays))
    held = {}
    for i, one in enumerate(videos):
        here = video == i
        held[one] = (values[array][here].astype(np.float32), rows["start_s"][here], rows["stop_s"][here])
    return store, held


def back(format, out, tmp_path, expert=None, dtype="float32", **options):
    """The store that an import of an export makes."""
    (path,) = import_features(
        format, out, "d", [expert] if expert else None, tmp_path / "back", dtype=dtype, options=options
    )
    store = open_store(path)
    assert store.sealed and store.manifest.recipe["imported"]["from"] in (format, "lfb")
    return store


def rows_of(store, video):
    rows = np.flatnonzero(store.rows["video"] == store.video_index(video))
    return rows[np.argsort(store.rows["k"][rows])]


# -- every format ------------------------------------------------------------------------------------------------------


def needs(format):
    pytest.importorskip({"rulstm": "lmdb", "ego4d": "torch", "mmaction_lfb": "torch"}.get(format, "numpy"))


@pytest.mark.parametrize("format", FOLDER_FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_export_and_import_give_the_same_values(tmp_path, format, dtype):
    needs(format)
    source, held = make(tmp_path, videos=OF_MMT if format == "mmt" else VIDEOS, dtype=dtype)
    seen = []
    out = export_features(format, source.path, tmp_path / "out", progress=lambda *x: seen.append(x))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    said = json.loads((out / "clipbank.json").read_text())
    assert said["features"]["i3d"]["recipe_hash"] == source.manifest.recipe_hash
    store = back(format, out, tmp_path, dtype=dtype)
    assert store.manifest.lineage[0]["dataset"] == "unknown" and not verify(store.path)
    assert sorted(store.videos["name"]) == sorted(held)
    timed = {"rulstm": 0.5, "lfb": 0.0, "mmaction_lfb": 0.0, "webdataset": 0.0, "actionformer": 0.5}
    for video, (values, start, stop) in held.items():
        rows = rows_of(store, video)
        assert np.array_equal(store.read("vector", rows), values.astype(dtype)), video
        if format in timed:
            off = timed[format]
            np.testing.assert_allclose(store.rows["start_s"][rows], start + off, atol=1e-6)
            np.testing.assert_allclose(store.rows["stop_s"][rows], stop - off, atol=1e-6)
        elif format == "npy":
            np.testing.assert_allclose(store.rows["stop_s"][rows], stop)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_formats_are_listed_and_names_survive():
    names = [one.name for one in list_formats()]
    assert set(FOLDER_FORMATS) | {"ce"} == set(names) and names == sorted(names)
    assert all(one.what and one.source for one in list_formats())
    with pytest.raises(ValueError, match="format 'npy' already"):
        register_format("npy", what="x")
    with pytest.raises(UserError, match="exported to .*npy.*, not 'ce'"):
        find_format("ce", "write")
    for name in (*VIDEOS, "..", ".hidden", "100%", "%2F", "a\nb", "x%20y"):
        file = quoted(name, ".")
        assert unquoted(file) == name and "/" not in file and "." not in file
    assert unquoted("x%20y") == "x%20y" and checked([[np.nan, 1]], "x") is None


# -- what the tools read -----------------------------------------------------------------------------------------------


def test_npy_is_laid_out_as_video_features_does(tmp_path):
    source, held = make(tmp_path, "i3d_rgb")
    flow, flow_held = make(tmp_path, "flow", seed=1)
    out = export_features("npy", {"rgb": source, "flow": flow}, tmp_path / "out")
    assert np.array_equal(np.load(out / "P01_01_rgb.npy"), held["P01_01"][0])
    assert np.array_equal(np.load(out / "P01_01_timestamps_ms.npy"), [1000, 2000, 3000, 4000, 5000])
    assert np.array_equal(np.load(out / "a.b%2Fc%25_flow.npy"), flow_held["a.b/c%"][0])
    paths = import_features("npy", out, "d", None, tmp_path / "back", dtype="float32")
    assert [p.name for p in paths] == ["npy_flow.zarr", "npy_rgb.zarr"]
    (np.save(out / "odd.npy", np.ones((1, C))), np.save(out / "vggish_vggish.npy", np.ones((2, C))))
    found = import_features("npy", out, "d", ["vggish"], tmp_path / "more", options={"step_s": 0.96})
    store = open_store(found[0])
    assert store.videos["name"].tolist() == ["vggish"] and store.rows["stop_s"].tolist() == [0.96, 1.92]
    assert store.manifest.recipe["imported"]["declared"]["step_s"] == 0.96
    with pytest.raises(UserError, match=r"npy has no option stride here; it has step_s \(seconds"):
        import_features("npy", out, "d", ["vggish"], tmp_path / "x", options={"stride": 1})


def test_features_of_one_video_share_one_file_of_times(tmp_path):
    """video_features has a folder for what was made in one run; other features would get times that are not theirs."""
    rgb, _ = make(tmp_path, "rgb")
    audio, _ = make(tmp_path, "audio", step=0.96, window=0.96)
    few, _ = make(tmp_path, "few", status=[OK] + [FAILED] + [OK] * 10)
    for other, missing in ((audio, "error"), (few, "skip")):
        with pytest.raises(UserError, match="P01_01: rgb and other do not have the same times.*export them one by one"):
            export_features("npy", {"rgb": rgb, "other": other}, tmp_path / "out", missing=missing)
        assert not (tmp_path / "out").exists()
    made = tmp_path / "i3d"  # as the tool itself leaves it: rgb, flow, fps, timestamps_ms; of r21d no times
    made.mkdir()
    for video, n in (("a_b", 3), ("a", 2)):
        for feature in ("rgb", "flow"):
            np.save(made / f"{video}_{feature}.npy", np.full((n, C), n + (feature == "flow")))
        np.save(made / f"{video}_fps.npy", np.array(25.0))
        np.save(made / f"{video}_timestamps_ms.npy", 1000.0 + 500 * np.arange(n))
    np.save(made / "a_b_r21d.npy", np.ones((7, C)))
    paths = import_features("npy", made, "d", None, tmp_path / "in", dtype="float32", options={"window_s": 0.5})
    stores = {path.stem: open_store(path) for path in paths}
    assert set(stores) == {"npy_rgb", "npy_flow", "npy_r21d"}
    for name in ("npy_rgb", "npy_flow"):
        store = stores[name]
        assert store.videos["name"].tolist() == ["a", "a_b"]
        assert store.rows["stop_s"].tolist() == [1.0, 1.5, 1.0, 1.5, 2.0] and store.rows["start_s"][0] == 0.5
        assert store.read("vector", [0, 2])[:, 0].tolist() == [2 + (name == "npy_flow"), 3 + (name == "npy_flow")]
    lone = stores["npy_r21d"]
    assert lone.videos["name"].tolist() == ["a_b"] and np.isnan(lone.rows["stop_s"]).all()
    with pytest.raises(UserError, match="laid out as video_features does. Import it as npy"):
        import_features("actionformer", made, "d", None, tmp_path / "in")


def test_lmdb_is_laid_out_as_rulstm_reads_it(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    source, held = make(tmp_path, step=0.5, window=0.0)
    out = export_features("rulstm", source, tmp_path / "out", options={"fps": 30.0})
    assert sorted(os.listdir(out)) == ["clipbank.json", "data.mdb"]
    with lmdb.open(str(out), readonly=True, lock=False) as environment, environment.begin() as transaction:
        assert transaction.stat()["entries"] == sum(COUNTS)
        for i, wanted in enumerate(held["P01_01"][0]):
            key = "P01_01_" + f"frame_{1 + 15 * i:010d}.jpg"
            assert np.array_equal(np.frombuffer(transaction.get(key.encode("utf-8")), "float32"), wanted)
    out = export_features("rulstm", source, tmp_path / "held", options={"hold": True})
    with lmdb.open(str(out), readonly=True, lock=False) as environment, environment.begin() as transaction:
        value = transaction.get(b"P01_01_frame_0000000030.jpg")  # between rows: the one before
        assert np.array_equal(np.frombuffer(value, "float32"), held["P01_01"][0][1])
        assert transaction.get(b"P01_01_frame_0000000061.jpg") and not transaction.get(b"P01_01_frame_0000000062.jpg")
    with pytest.raises(UserError, match="P01_01: two rows at frame 1 of 1 fps"):
        export_features("rulstm", source, tmp_path / "coarse", options={"fps": 1.0})
    with lmdb.open(str(tmp_path / "odd"), map_size=1 << 20, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"v_frame_0000000001.jpg", b"12345")
    with pytest.raises(UserError, match="key v_frame_0000000001.jpg: 5 bytes, expected a multiple of 4"):
        import_features("rulstm", tmp_path / "odd", "d", None, tmp_path / "back")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none cannot be read as LMDB"):
        import_features("rulstm", tmp_path / "none", "d", None, tmp_path / "back")
    assert not (tmp_path / "coarse").exists()


def test_large_lmdbs_grow(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    source, held = make(tmp_path, step=4.0, window=0.0, arrays={"vector": ArraySpec((10_000,), "float32")})
    out = export_features("rulstm", source, tmp_path / "out", options={"hold": True, "fps": 60})
    with lmdb.open(str(out), readonly=True, lock=False) as environment, environment.begin() as transaction:
        value = transaction.get(b"P01_01_frame_0000000240.jpg")
        assert np.array_equal(np.frombuffer(value, "float32"), held["P01_01"][0][0])
        assert environment.stat()["psize"] * environment.info()["last_pgno"] > 1 << 26


def test_webdataset_reads_the_shards(tmp_path):
    source, held = make(tmp_path)
    out = export_features("webdataset", {"i3d": source}, tmp_path / "out", options={"shard_mb": 1e-6})
    shards = sorted(out.glob("*.tar"))
    assert [p.name for p in shards] == [f"shard-{i:06d}.tar" for i in range(3)]
    again = export_features("webdataset", {"i3d": source}, tmp_path / "again", options={"shard_mb": 1e-6})
    assert [p.read_bytes() for p in shards] == [p.read_bytes() for p in sorted(again.glob("*.tar"))]
    with tarfile.open(shards[2]) as tar:
        assert tar.getnames() == ["a%2Eb%2Fc%25.i3d.npy", "a%2Eb%2Fc%25.json"]
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset([str(p) for p in shards], shardshuffle=False).decode())
    assert [sample["json"]["video"] for sample in samples] == list(VIDEOS)
    for sample in samples:
        assert np.array_equal(sample["i3d.npy"], held[sample["json"]["video"]][0])
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        np.save(tmp_path / "x.npy", np.ones((2, C), np.float32))
        tar.add(tmp_path / "x.npy", "some/v1.npy")
    store = back("webdataset", tmp_path / "plain.tar", tmp_path, "features")
    assert store.videos["name"].tolist() == ["some/v1"] and np.isnan(store.rows["start_s"]).all()


@pytest.mark.parametrize("names", [["v.i3d.npy"] * 2, ["v.npy", "v.features.npy"], ["v.i3d.npy", "v.json", "v.json"]])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_member_that_is_there_twice_is_refused(tmp_path, names, shards):
    np.save(tmp_path / "x.npy", np.ones((2, C), np.float32))
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "in").mkdir()
    for number, part in enumerate([names[:-1], names[-1:]] if shards == 2 else [names]):
        with tarfile.open(tmp_path / "in" / f"shard-{number}.tar", "w") as tar:
            for name in part:
                tar.add(tmp_path / ("x.json" if name.endswith("json") else "x.npy"), name)
    with pytest.raises(UserError, match=rf"{names[-1]}: shard-0.tar has it already.*nobody can say"):
        import_features("webdataset", tmp_path / "in", "d", None, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_names_that_look_alike_are_members_of_their_own(tmp_path):
    """What `webdataset` would take for one sample, or one member, is written as two."""
    source, held = make(tmp_path, videos=("a.b", "a", "a%2Eb"))
    out = export_features("webdataset", {"b.npy": source, "b": source, "json": source}, tmp_path / "out")
    with tarfile.open(next(out.glob("*.tar"))) as tar:
        assert len(tar.getnames()) == len(set(tar.getnames())) == 3 * 4
    for expert in ("b.npy", "b", "json"):
        (path,) = import_features("webdataset", out, "d", [expert], tmp_path / expert, dtype="float32")
        store = open_store(path)
        for video, (values, *_) in held.items():
            assert np.array_equal(store.read("vector", rows_of(store, video)), values)


def test_mmt_h5_is_read_as_mmt_does(tmp_path):
    source, held = make(tmp_path, "s3d_a", videos=OF_MMT)
    face, _ = make(tmp_path, "face_a", videos=OF_MMT, status=[OK] * 5 + [ABSENT] * 3 + [OK] * 4, seed=2)
    out = export_features("mmt", {"s3d": source, "face": face}, tmp_path / "out")
    with h5py.File(out / "vid_feat_files" / "mult_h5" / "P" / "0" / "1" / "P01_01.h5") as file:
        assert set(file) == {
            "features.face", "features.s3d", "features_t.face", "features_t.s3d",
            "raw_captions.0", "raw_captions.1", "raw_captions_t.0", "raw_captions_t.1",
        }  # fmt: skip
        assert np.array_equal(file["features.s3d"][()], held["P01_01"][0]) and file["features.s3d"].dtype == np.float32
        assert file["features_t.s3d"][()].tolist() == [[i, i + 1] for i in range(5)]
        words = [word.decode() for word in file["raw_captions.1"][()]]
        assert words == ["cuts", "à"] and file["raw_captions_t.1"].shape == (2, 2)
    with h5py.File(out / "vid_feat_files" / "mult_h5" / "v" / "i" / "d" / "video 2 ü.h5") as file:
        assert "features.face" not in file and "features.s3d" in file
    store = back("mmt", out, tmp_path, "face")
    assert store.status()[rows_of(store, "video 2 ü")].tolist() == [ABSENT]
    assert sorted(store.texts["caption"]) == ["a man", "b", "cuts à", "d"]
    other, _ = make(tmp_path, "other")
    with pytest.raises(UserError, match="'a.b/c%': MMT files videos as v/i/d/"):
        export_features("mmt", other, tmp_path / "other")


def test_ego4d_and_mmaction_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    source, held = make(tmp_path, step=0.5, window=1.0)
    out = export_features("ego4d", source, tmp_path / "ego4d")
    loaded = torch.load(out / "P01_01.pt", weights_only=True)
    assert loaded.dtype == torch.float32 and np.array_equal(loaded.numpy(), held["P01_01"][0])
    out = export_features("mmaction_lfb", source, tmp_path / "lfb", options={"part": "val"})
    bank = torch.load(out / "lfb_val.pkl", map_location="cpu", weights_only=True)
    assert list(bank) == list(VIDEOS) and list(bank["P01_01"]) == [0, 1, 2]  # centres 0.5, 1, 1.5, 2, 2.5
    assert np.array_equal(bank["P01_01"][1].numpy(), held["P01_01"][0][1:3])
    with h5py.File(export_features("lfb", source, tmp_path / "h5") / "lfb.h5") as file:
        mine = {v: {int(s): d[()] for s, d in g.items()} for v, g in file.items()}
    assert np.array_equal(mine["P01_01"][1], held["P01_01"][0][1:3])

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"video0": Evil()}, tmp_path / "lfb_train.pkl")
    with pytest.raises(UserError, match=r"lfb_train\.pkl cannot be read as tensors alone"):
        import_features("lfb", tmp_path / "lfb_train.pkl", "d", None, tmp_path / "back")
    torch.save([1, 2], tmp_path / "ego4d" / "P01_01.pt")
    with pytest.raises(UserError, match=r"P01_01\.pt: expected a tensor, got list"):
        import_features("ego4d", tmp_path / "ego4d", "d", None, tmp_path / "back")


def test_actionformer_times_are_those_of_its_formula(tmp_path):
    source, held = make(tmp_path, step=0.5, window=1.0, start=-0.25)
    out = export_features("actionformer", source, tmp_path / "out", options={"fps": 20.0})
    facts = json.loads((out / "actionformer.json").read_text())
    feats = np.load(out / "P01_01.npy").astype(np.float32)
    assert np.array_equal(feats, held["P01_01"][0]) and facts["input_dim"] == C
    centre = (held["P01_01"][1] + held["P01_01"][2]) / 2
    cell = (centre * facts["default_fps"] - 0.5 * facts["num_frames"]) / facts["feat_stride"]
    np.testing.assert_allclose(cell, np.arange(5))
    store = back("actionformer", out, tmp_path, window_s=1.0)
    np.testing.assert_allclose(store.rows["start_s"][rows_of(store, "P01_01")], held["P01_01"][1])
    uneven, _ = make(tmp_path, "uneven", status=[OK, OK, FAILED] + [OK] * 9)
    with pytest.raises(UserError, match="P01_01: ActionFormer needs rows at even steps"):
        export_features("actionformer", uneven, tmp_path / "uneven", missing="skip")
    (out / "actionformer.json").write_text("{}")
    with pytest.raises(UserError, match=r"actionformer\.json does not give feat_stride"):
        import_features("actionformer", out, "d", None, tmp_path / "x")


# -- what is refused, and what is left behind --------------------------------------------------------------------------


def test_rows_without_a_value(tmp_path):
    source, held = make(tmp_path, status=[OK, FAILED] + [OK] * 10)
    with pytest.raises(UserError, match=r"1 of 12 rows hold no value, first row 1 \(failed\)"):
        export_features("npy", source, tmp_path / "out")
    out = export_features("npy", source, tmp_path / "skip", missing="skip")
    assert np.array_equal(np.load(out / "P01_01_i3d.npy"), held["P01_01"][0][[0, 2, 3, 4]])
    out = export_features("npy", source, tmp_path / "nan", missing="nan")
    assert np.isnan(np.load(out / "P01_01_i3d.npy")[1]).all() and len(np.load(out / "P01_01_i3d.npy")) == 5
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path):
    arrays = {"spatial": ArraySpec((2, 2, C), "float16"), "boxes": ArraySpec((4,), "float32")}
    source, _ = make(tmp_path, arrays=arrays)
    with pytest.raises(UserError, match="'spatial' has no float vector a row.*; there are boxes"):
        export_features("npy", source, tmp_path / "out", array="spatial")
    with pytest.raises(UserError, match="format ego4d holds one feature, asked for a, b"):
        export_features("ego4d", {"a": source, "b": source}, tmp_path / "out")
    with pytest.raises(UserError, match="exported to .*, not 'pickle'"):
        export_features("pickle", source, tmp_path / "out")
    with pytest.raises(UserError, match="npy has no option fps here"):
        export_features("npy", source, tmp_path / "out", options={"fps": 3})
    with pytest.raises(UserError, match="has no rows of draw 3"):
        export_features("npy", source, tmp_path / "out", draw=3)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists"):
        export_features("npy", source, tmp_path / "out")


@pytest.mark.parametrize("format", FOLDER_FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_is_left_of_an_export_that_fails(tmp_path, format, error):
    needs(format)
    source, _ = make(tmp_path, videos=OF_MMT)

    def fail(done, total):
        if done == 2:
            raise error

    expected = MachineError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export_features(format, source, tmp_path / "out", progress=fail)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i3d.zarr"]
    assert export_features(format, source, tmp_path / "out").is_dir()


def test_an_imported_store_says_so(tmp_path):
    source, _ = make(tmp_path)
    store = back("npy", export_features("npy", source, tmp_path / "out"), tmp_path)
    lines = []
    export_features("npy", store, tmp_path / "again", announce=lines.append)
    assert "its recipe is declared, not verified" in lines[0]
    from stores.compare import compare

    found = compare(source, store, by="time")
    assert found.agree and any("declared, not verified" in note for note in found.notes)


@pytest.mark.parametrize(
    "name, body, message",
    [
        ("v_i3d.npy", b"no numpy", r"v_i3d\.npy cannot be read as \.npy"),
        ("v_i3d.npy", np.array([{"a": 1}], object), r"v_i3d\.npy cannot be read as \.npy: Object arrays"),
        ("v_i3d.npy", np.ones((2, 3, 4)), r"v_i3d\.npy: expected features \(n, C\)"),
        ("P01_01_timestamps_ms.npy", np.ones((2, 2)), r"timestamps_ms\.npy: expected times \(n,\)"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, body, message):
    source, _ = make(tmp_path)
    out = export_features("npy", source, tmp_path / "out")
    if isinstance(body, bytes):
        (out / name).write_bytes(body)
    else:
        np.save(out / name, body, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        import_features("npy", out, "d", None, tmp_path / "back")
