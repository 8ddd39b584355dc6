"""What the README says is run: its Python on a small store, its commands against the command line."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from store_samples import VIDEOS, fill, new_store

import cli
from stores import ArraySpec

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PATH = "features/epic55/i3d_rgb.zarr"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = {"spatial": ArraySpec((8, 8, 16), "float16"), "vector": ArraySpec((16,), "float16")}
    made = new_store(tmp_path / PATH, n=40, unit_rows=8, arrays=arrays)
    fill(made, failed=[3])
    for video in VIDEOS["name"]:
        made.write_probe(video, {"geometry": [8.0, 8.0, 0.0, 0.0]})
    return made


def test_five_lines_of_plain_zarr_read_a_store(store):
    code = next(block for block in blocks("python") if "import zarr" in block)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 5
    seen = {}
    exec(code, seen)
    assert seen["ok"].tolist() == store.ok.tolist() and 3 not in seen["ok"]
    assert np.array_equal(seen["vectors"], store.read("vector", store.ok))
    assert list(seen["clips"]) == list(store.clips["id"][store.rows["clip"][store.ok]])


def test_python_of_the_readme_runs(store):
    code = next(block for block in blocks("python") if "open_store" in block)
    seen = {}
    exec(code, seen)
    assert seen["spatial"].shape == (32, 8, 8, 16)


def test_five_lines_feed_a_training_loop(store):
    code = next(block for block in blocks("python") if "DataLoader" in block)
    assert len(code.strip().splitlines()) == 5
    seen = {}
    exec(code, seen)
    assert seen["spatial"].shape == (20, 8, 8, 16)
    assert sorted(seen["batch"]["clip"].tolist()) == list(range(1, 40, 2))


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return sorted(
        {line for line in lines if line.startswith("python cli.py")}
        | set(re.findall(r"`(python cli\.py[^`]*)`", README))
    )


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_readme_parse(command, tmp_path, monkeypatch):
    """Each is parsed to the end (wrong paths are refused by the command itself, not by the parser)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPBANK_DATA", raising=False)
    done = CliRunner().invoke(cli.main, shlex.split(command)[2:])
    for wrong in ("No such option", "No such command", "Missing", "unexpected extra", "is not one of"):
        assert wrong not in done.output, done.output


def test_options_that_the_readme_names_exist():
    help_text = "".join(
        CliRunner().invoke(cli.main, [*name, "--help"]).output
        for name in (
            ["extract"],
            ["train-head"],
            ["train-backbone"],
            ["evaluate"],
            ["recognize"],
            ["store", "inspect"],
            ["store", "repair"],
            ["store", "merge"],
        )
    )
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert option in help_text, option
