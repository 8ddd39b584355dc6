"""The one loop of all trainings: rates, the log for TensorBoard, several processes."""

import numpy as np
import pytest
from run_files import metrics_of
from synthetic_stores import all_stores
from two_processes import run_in_two_processes

from pipelines.run_folder import load_tensors, open_run
from pipelines.training import TrainingConfig, train_head

QUICK = {"lr": 0.1, "last_lr": 0.01, "batch_size": 8}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return all_stores(tmp_path_factory.mktemp("features"), videos=8)


def train(stores, out):
    return train_head("saoa", **stores, out=out, epochs=2, set=QUICK, progress=False, say=lambda line: None)


def test_a_cosine_ends_at_the_last_rate():
    rates = [TrainingConfig(decay="cosine", epochs=5, lr=1.0, last_lr=0.2).lr_of(e) for e in range(5)]
    assert rates == pytest.approx([1, 0.2 + 0.4 * (1 + 2**-0.5), 0.6, 0.2 + 0.4 * (1 - 2**-0.5), 0.2])
    assert TrainingConfig(decay="cosine", epochs=1).lr_of(0) == 1e-3


def test_tensorboard_shows_the_log(stores, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def shown(run):
        read = events.EventAccumulator(str(run / "tensorboard")).Reload()
        return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}

    run = train(stores, tmp_path / "run")
    log = open_run(run).log()
    found = shown(run)
    assert {"train/loss", "train/lr", "val/verb_top1", "val/action_top5"} < found.keys()
    for tag, column in (("train/loss", "loss"), ("val/noun_top1", "val_noun_top1")):
        assert found[tag] == [(row["epoch"], pytest.approx(row[column], rel=1e-6)) for row in log]
    # Killed between an epoch's events and its checkpoint: the epoch is there once after all.
    (checkpoint := run / "last.safetensors").unlink()
    train(stores, run)
    assert checkpoint.is_file() and [step for step, _ in shown(run)["train/loss"]] == [1, 2]


def test_two_processes_take_the_steps_of_one(stores, tmp_path):
    run = train(stores, tmp_path / "one")
    given = {role: str(store.path) for role, store in stores.items()}
    code = (
        "from pipelines.training import train_head\n"
        f"train_head('saoa', **{given!r}, out={str(tmp_path / 'two')!r}, epochs=2, set={QUICK!r}, device='cpu',"
        " progress=False)"
    )
    run_in_two_processes(code, tmp_path)
    one, two = (load_tensors(tmp_path / name / "last.safetensors")[0] for name in ("one", "two"))
    assert one.keys() == two.keys() and all(np.allclose(one[key], two[key], 1e-4, 1e-5) for key in one)
    assert metrics_of(tmp_path / "two")["action"] == metrics_of(run)["action"]
