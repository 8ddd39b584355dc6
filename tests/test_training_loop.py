"""The one loop of all trainings: rates, the log for TensorBoard, several processes."""

import numpy as np
import pytest
import torch
from run_files import metrics_of
from synthetic_stores import all_stores
from two_processes import run_in_two_processes

from pipelines.loop import Loop, Schedule
from pipelines.loop import train as run_loop
from pipelines.run_folder import load_tensors, open_run, start_run
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


class Slopes:
    """A task whose loss of an item is (its row of numbers) . (all parameters): the gradient is the mean row."""

    def __init__(self, rows):
        self.rows = torch.tensor(rows, dtype=torch.float64)
        self.model = torch.nn.ParameterDict({name: torch.nn.Parameter(START[name].clone()) for name in START})

    def batches(self, epoch):
        return [np.arange(len(self.rows))]

    def batch(self, items, epoch):
        return {"rows": self.rows[items]}

    def loss(self, batch):
        return (batch["rows"] @ torch.cat([*self.model.values()])).mean()

    def validate(self):
        return None

    def checkpoint(self):
        return self.model.state_dict(), {}

    def finish(self, best, history):
        pass


START = {"one": torch.tensor([0.5, -2.0], dtype=torch.float64), "two": torch.tensor([3.0], dtype=torch.float64)}
# Their mean (3, -4, 12) has norm 13, each alone another one.
STEEP = [[306.0, -4.0, 12.0], [-300.0, -4.0, 12.0]]


def stepped(out, rows, **settings):
    """The parameters after the loop's last epoch of one step each."""
    schedule = Schedule(**{"epochs": 1, "lr": 0.1, "last_epochs": 0, "momentum": 0.9, "weight_decay": 0.5, **settings})
    task = Slopes(rows)
    run, _ = start_run(out, {"stores": {}})
    run_loop(Loop(run, task, schedule, seed=0, device="cpu", progress=False), False, lambda line: None)
    return torch.cat([*task.model.values()]).tolist()


@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize(("clip_norm", "scale"), [(0.0, 1), (6.5, 0.5), (0.013, 0.001), (13.5, 1)])
def test_gradients_are_scaled_down_to_clip_norm(tmp_path, clip_norm, scale, micro_batch):
    """By the norm over all parameters of the whole batch's gradient, before weight decay; a smaller gradient is left as
    it is, and 0 stands for never. Two steps of SGD by hand, the second with the momentum of the first."""
    found = stepped(tmp_path / "run", STEEP, clip_norm=clip_norm, micro_batch=micro_batch, epochs=2)
    expected = []
    for gradient, value in zip((3, -4, 12), (0.5, -2.0, 3.0), strict=True):
        velocity = gradient * scale + 0.5 * value
        value -= 0.1 * velocity
        velocity = 0.9 * velocity + gradient * scale + 0.5 * value
        expected.append(value - 0.1 * velocity)
    assert found == pytest.approx(expected, abs=1e-6)  # torch adds as much to the norm
