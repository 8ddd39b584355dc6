"""Finding the stores that a head reads among the feature roots, and what is said where there are none or several."""

from dataclasses import replace

import pytest
from synthetic_stores import clip_store, object_store

from errors import MachineError, UserError
from pipelines import train_head
from pipelines.find_stores import find_stores
from pipelines.run_folder import open_run
from stores.zarr_store import write_manifest

READS = {"verb": ("spatial", "vector"), "noun": ("vector",), "objects": ("roi", "boxes")}


def test_find_stores(tmp_path):
    root = tmp_path / "features"
    with pytest.raises(UserError, match="--features .*features: no such folder"):
        find_stores(READS, features=[root])
    root.mkdir()
    with pytest.raises(UserError, match="no dataset .*extract --dataset DATASET --backbone i3d"):
        find_stores(READS, features=[root])
    one = root / "toy"
    clip_store(one, "i3d_rgb")
    with pytest.raises(UserError, match="toy: no store holds roi.*extract --dataset toy --backbone i3d"):
        find_stores(READS, features=[root])
    found, _ = find_stores({"verb": ("vector",), "noun": ("vector",)}, features=[root])
    assert found["verb"] is found["noun"]
    object_store(one)
    found, lines = find_stores(READS, features=[root])
    assert found["verb"].path.name == "i3d_rgb.zarr" and found["objects"].path.name == "faster_rcnn.zarr"
    assert lines[0] == f"verb: {one}/i3d_rgb.zarr" and len(lines) == 3
    clip_store(one, "i3d_rgb_verb"), clip_store(one, "i3d_rgb_noun")
    found, _ = find_stores(READS, features=[root])
    assert found["verb"].path.name == "i3d_rgb_verb.zarr" and found["noun"].path.name == "i3d_rgb_noun.zarr"
    object_store(one, "other_boxes")
    with pytest.raises(UserError, match="several stores hold objects: say which with --objects"):
        find_stores(READS, features=[root])
    found, _ = find_stores(READS, features=[root], given={"objects": "mine"})
    assert set(found) == {"verb", "noun"}


def test_a_folder_that_is_no_store_is_left_out(tmp_path):
    near, far = tmp_path / "near", tmp_path / "far"
    clip_store(far / "toy"), object_store(far / "toy")
    (near / "toy" / "i3d_rgb.zarr" / "rows").mkdir(parents=True)  # half copied
    found, lines = find_stores(READS, features=[near, far])
    assert found["verb"].path == far / "toy" / "i3d_rgb.zarr"
    assert [line for line in lines if "left out" in line and "the copy is not finished" in line] == lines[3:]
    with pytest.raises(UserError, match="left out: .*i3d_rgb.zarr is not a store"):
        find_stores(READS, features=[near])


def test_damage_of_a_store_is_raised_where_it_is_needed(tmp_path):
    clip_store(tmp_path / "toy"), object_store(tmp_path / "toy")
    root = tmp_path / "toy" / "faster_rcnn.zarr" / "zarr.json"
    root.write_text(root.read_text().replace('"faster_rcnn"', '"faster_rcnm"'))
    with pytest.raises(MachineError, match="faster_rcnn.zarr.*damaged or edited"):
        find_stores(READS, features=[tmp_path])
    assert set(find_stores(READS, features=[tmp_path], given={"objects": "mine"})[0]) == {"verb", "noun"}


def test_what_find_stores_advises(tmp_path):
    store = clip_store(tmp_path / "mine", dataset="mine")
    write_manifest(store.path, replace(store.manifest, dataset={**store.manifest.dataset, "family": ""}))
    command = "cli.py extract --dataset mine.csv --videos DIR --backbone i3d --for saoa$"
    with pytest.raises(UserError, match=command):
        find_stores(READS, features=[tmp_path])
    object_store(tmp_path / "mine", "a"), object_store(tmp_path / "mine", "b")
    with pytest.raises(UserError, match="^mine: several stores hold objects: .*--objects .*a.zarr or .*b.zarr$"):
        find_stores(READS, features=[tmp_path])  # nothing to extract
    object_store(tmp_path / "others" / "toy")
    with pytest.raises(UserError, match="extract --dataset toy --backbone i3d --for ipl$"):  # it reads full maps
        find_stores({"verb": ("map",)}, features=[tmp_path / "others"])


def test_several_datasets(tmp_path):
    for name in ("one", "two"):
        clip_store(tmp_path / name, dataset=name), object_store(tmp_path / name, dataset=name)
    with pytest.raises(UserError, match="several datasets .* say --dataset one or --dataset two"):
        find_stores(READS, features=[tmp_path])
    assert find_stores(READS, features=[tmp_path], dataset="two")[0]["verb"].path.parent.name == "two"
    said = []
    options = {"epochs": 1, "set": {"lr": 0.1, "last_lr": 0.01, "batch_size": 8}, "progress": False}
    run = train_head("saoa", out=tmp_path / "run", features=[tmp_path], dataset="one", say=said.append, **options)
    assert open_run(run).facts["dataset"]["name"] == "one" and any(s.startswith("objects: ") for s in said)
