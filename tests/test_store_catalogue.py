"""`catalog` lists every store under a folder; `info` says what is in one."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from errors import MachineError, UserError
from stores import OK, ArraySpec, info, open_store
from stores.catalogue import catalogue
from stores.zarr_store import read_manifest, write_manifest
from tests.store_samples import fill, new_store, values

SMALL = {"vector": ArraySpec((7,), "float16")}
RECIPE = {"network": {"name": "i3d_rgb", "layer": "Mixed_5c"}, "weights": "abc", "dtype": "float16"}


def named(store, dataset: str, **spec):
    """The store as an extraction would describe it."""
    manifest = read_manifest(store.path)
    facts = {"name": "i3d_rgb", "weights_origin": "i3d_rgb.kinetics400", "licence": "Apache-2.0", **spec}
    lineage = [{"dataset": "kinetics400", "split": "train"}]
    write_manifest(store.path, replace(manifest, dataset={"name": dataset}, spec=facts, lineage=lineage))
    return open_store(store.path)


# ---- catalog -----------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """Two datasets, three stores that are whole, one broken, one hidden, and things that are no stores."""
    one = named(new_store(tmp_path / "epic" / "i3d_rgb.zarr", arrays=SMALL, recipe=RECIPE), "epic")
    fill(one, failed=(2,))
    one.write_provenance("b", {"started": "2026-02-01T00:00:00+00:00", "user": "eve", "host": "two", "rows": 1})
    one.write_provenance("a", {"started": "2026-01-01T00:00:00+00:00", "user": "adam", "host": "one"})
    one.seal()
    recipe = {**RECIPE, "weights": "def", "network": {**RECIPE["network"], "layer": "Mixed_4f"}}
    two = named(new_store(tmp_path / "lab" / "msrvtt" / "i3d_rgb.zarr", arrays=SMALL, recipe=recipe), "msrvtt")
    fill(two, two.units[:1])
    three = named(new_store(tmp_path / "epic" / "old.zarr", arrays=SMALL, recipe={"imported": {"from": "mmt"}}), "epic")
    fill(three)
    (tmp_path / "epic" / "broken.zarr").mkdir()
    (tmp_path / "epic" / "broken.zarr" / "zarr.json").write_text("{")
    (tmp_path / "epic" / "noise.txt").write_text("")
    (tmp_path / "epic" / ".hidden.zarr").mkdir()
    return tmp_path


def test_every_store_is_a_line_and_a_broken_one_is_no_end(root):
    entries = json.loads(json.dumps(catalogue(root)))
    assert [os.path.relpath(entry["store"], root) for entry in entries] == [
        "epic/broken.zarr",
        "epic/i3d_rgb.zarr",
        "epic/old.zarr",
        "lab/msrvtt/i3d_rgb.zarr",
    ]
    broken, one, old, two = entries
    assert set(broken) == {"store", "error"} and "zarr.json" in broken["error"]
    assert one["rows"] == {"total": 7, "ok": 6, "failed": 1, "absent": 0, "pending": 0}
    assert two["rows"] == {"total": 7, "ok": 4, "failed": 0, "absent": 0, "pending": 3}
    assert (one["dataset"], one["feature"], one["network"], one["sealed"]) == ("epic", "i3d_rgb", "i3d_rgb", 1)
    assert one["weights"] == "i3d_rgb.kinetics400" and one["licence"] == "Apache-2.0" and one["origin"] is None
    assert one["lineage"] == [{"dataset": "kinetics400", "split": "train"}]
    assert one["runs"] == 2 and one["first_run"]["user"] == "adam" and one["last_run"]["host"] == "two"
    assert one["arrays"]["vector"] == "[7] float16" and two["sealed"] is None and two["last_run"] is None
    files = sum(p.stat().st_size for p in (root / "epic" / "i3d_rgb.zarr").rglob("*") if p.is_file())
    assert one["stored_bytes"] == files
    assert "unverified" in old["origin"]


def test_where_two_stores_of_a_feature_differ_is_said_with_both_values(root):
    _, one, old, two = catalogue(root)
    assert one["differs"] == []
    (difference,) = two["differs"]
    assert difference["from"] == one["store"] and difference["same"] == "feature"
    assert difference["fields"] == [
        'network.layer: here "Mixed_4f", there "Mixed_5c"',
        'weights: here "def", there "abc"',
    ]
    (difference,) = old["differs"]
    assert difference["same"] == "network", "another name of the same network"


def test_a_store_itself_and_a_folder_that_is_not_there(root):
    (entry,) = catalogue(root / "epic" / "i3d_rgb.zarr")
    assert entry["rows"]["ok"] == 6
    assert catalogue(root / "lab" / "msrvtt")[0]["dataset"] == "msrvtt"
    with pytest.raises(UserError, match="no folder"):
        catalogue(root / "nowhere")


def test_damage_deeper_in_a_store_is_its_line(root):
    store = root / "epic" / "i3d_rgb.zarr"
    (store / "sealed" / "1" / "status" / "c.0").unlink()
    (store / "provenance" / "a.json").write_text("{")
    errors = [entry for entry in catalogue(root) if "error" in entry]
    assert len(errors) == 2 and len(catalogue(root)) == 4


def test_packed_stores_and_a_served_folder(root):
    import threading

    from stores.hdf5_pack import pack
    from stores.serve import make_server

    pack(root / "epic" / "i3d_rgb.zarr", root / "epic" / "packed.h5")
    entry = catalogue(root / "epic" / "packed.h5")[0]
    assert entry["rows"]["ok"] == 6 and entry["stored_bytes"] == (root / "epic" / "packed.h5").stat().st_size
    facts = info(root / "epic" / "packed.h5")
    assert facts["arrays"]["vector"]["stored_bytes"] > 0 and facts["stored_bytes"] == entry["stored_bytes"]
    (root / "epic" / "packed.h5").unlink()
    with make_server(root, "127.0.0.1", 0, None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served = catalogue(server.url)
        server.shutdown()
    whole = {os.path.basename(e["store"]): e["rows"] for e in served if "error" not in e and e["dataset"] == "epic"}
    assert whole["i3d_rgb.zarr"]["ok"] == 6 and len(served) == len(catalogue(root))
    with pytest.raises(MachineError, match="does not answer"):
        catalogue(server.url)
    with pytest.raises(UserError, match="cannot be listed"):
        catalogue("s3://bucket/stores")


# ---- info --------------------------------------------------------------------------------------------------------


def test_values_coverage_and_failures(tmp_path):
    store = new_store(tmp_path / "s.zarr", 9, unit_rows=4)
    fill(store, store.units[:2], failed=(2, 5))
    facts = json.loads(json.dumps(info(store.path)))
    assert "origin" not in facts
    vector = facts["arrays"]["vector"]["values"]
    read = store.read("vector", store.ok).astype(np.float64)
    assert vector["rows"] == 6 and vector["finite"] == 1 and vector["zero"] == (read == 0).mean()
    assert vector["mean"] == pytest.approx(read.mean()) and vector["std"] == pytest.approx(read.std())
    assert vector["quantiles"]["0"] == read.min() and vector["quantiles"]["1"] == read.max()
    assert vector["quantiles"]["0.5"] == np.quantile(read, 0.5)
    assert sum(vector["histogram"]["counts"]) == read.size and len(vector["histogram"]["edges"]) == 21
    assert "values" not in facts["arrays"]["classes"]
    assert facts["coverage"] == {"split": {"train": {"ok": 3, "failed": 1, "absent": 0, "pending": 0}}}
    assert facts["failures"] == {"damaged": 2}
    assert facts["failure_examples"] == {"damaged": "row 2, video P01_01: line one line two"}


def test_values_that_are_not_finite_are_counted_apart(tmp_path, monkeypatch):
    store = new_store(tmp_path / "s.zarr", 4, unit_rows=4, arrays={"vector": ArraySpec((4,), "float32")})
    store.commit(0, values(store, range(4)), np.full(4, OK, np.uint8))
    given = np.array([[1, np.nan, np.inf, 3]] * 4, np.float32)
    monkeypatch.setattr(type(store), "read", lambda self, name, rows: given[: len(rows)])
    facts = info(store.path)["arrays"]["vector"]["values"]
    assert facts["finite"] == 0.5 and facts["mean"] == 2 and facts["quantiles"]["1"] == 3


def test_only_a_sample_is_read(tmp_path, monkeypatch):
    import stores.summary

    monkeypatch.setattr(stores.summary, "SAMPLE_ROWS", 3)
    store = new_store(tmp_path / "s.zarr", 9, unit_rows=4, arrays=SMALL)
    fill(store)
    first, again = (info(store.path)["arrays"]["vector"]["values"] for _ in range(2))
    assert first["rows"] == 3 and first == again
    assert info(store.path, seed=1)["arrays"]["vector"]["values"] != first


def test_an_empty_a_damaged_and_an_imported_store(tmp_path):
    store = new_store(tmp_path / "s.zarr", 4, unit_rows=4, arrays=SMALL, recipe={"imported": {"from": "mmt"}})
    facts = info(store.path)
    assert next(iter(facts.items())) == ("origin", "imported from mmt: its recipe is declared, unverified")
    assert facts["arrays"]["vector"]["values"] == {"rows": 0} and facts["failure_examples"] == {}
    fill(store)
    (store.path / "data" / "vector" / "c.0.0").unlink()
    assert "is missing" in info(store.path)["arrays"]["vector"]["values"]["error"]
