"""Two workers commit one unit, one of which sees failures: every order of their steps, one after another.

A step is a reading of the unit, a file that is written, or the look back at the end. Each worker is a thread that
waits for its turn before each step, so an order is a list of turns, and all orders can be run through. Whatever a
reader finds between two steps is also what two kills at that moment leave.
"""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import stores.commit as commit
from stores import FAILED, OK, PENDING, ArraySpec, DamagedStore, open_store, verify
from stores.zarr_store import ZarrFiles
from tests.store_samples import new_store, values

VECTOR = {"vector": ArraySpec((3,), "float32")}
PICTURES = {"flow": ArraySpec((2, 3, 2), "uint8")}
N = 2
AGREED = {"first": [OK, OK], "second": [OK, FAILED]}
CROSSED = {"first": [OK, FAILED], "second": [FAILED, OK]}


class Schedule:
    """Lets one of two threads go on at a time. `turns`: who goes first, second, ...; then whoever can."""

    def __init__(self, turns: tuple[int, ...], between):
        self.turns, self.between = list(turns), between
        self.taken: list[tuple[int, tuple[int, ...]]] = []  # (who went, who could have gone)
        self.waiting: set[int] = set()
        self.running = {0, 1}
        self.changed = threading.Condition()
        self.current: int | None = None
        self.mine = threading.local()

    def step(self) -> None:
        """Called by a worker before each step; of a thread that is none it is nothing."""
        if (me := getattr(self.mine, "number", None)) is None:
            return
        with self.changed:
            self.current = None
            self.waiting.add(me)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.current == me)
            self.waiting.discard(me)

    def run(self, works) -> list[BaseException]:
        problems: list[BaseException] = []

        def worker(number, work):
            self.mine.number = number
            try:
                self.step()
                work()
            except BaseException as error:
                problems.append(error)
            with self.changed:
                self.running.discard(number)
                self.current = None
                self.changed.notify_all()

        threads = [threading.Thread(target=worker, args=pair, daemon=True) for pair in enumerate(works)]
        for thread in threads:
            thread.start()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.current is None and self.waiting == self.running)
                if not self.running:
                    break
                able = tuple(sorted(self.waiting))
            self.between()
            with self.changed:
                wanted = self.turns.pop(0) if self.turns else able[0]
                self.current = wanted if wanted in able else able[0]
                self.taken.append((self.current, able))
                self.changed.notify_all()
        for thread in threads:
            thread.join()
        return problems


def every_order(run, switches: int) -> int:
    """Calls run(turns) for every order with at most so many switches from a worker that could have gone on.

    `run` returns the turns taken, with who could have gone each time; returns how many orders there are.
    """
    count, todo = 0, [()]
    while todo:
        turns = todo.pop()
        taken = run(turns)
        count += 1
        for at in range(len(turns), len(taken)):
            who, able = taken[at]
            for other in able:
                order = (*(t for t, _ in taken[:at]), other)
                if other != who and switched(taken[:at], other) <= switches:
                    todo.append(order)
    return count


def switched(taken: list, last: int) -> int:
    order = [who for who, _ in taken] + [last]
    could = [able for _, able in taken] + [(0, 1)]
    return sum(a != b and a in able for a, b, able in zip(order, order[1:], could[1:], strict=False))


@pytest.fixture
def steps(monkeypatch):
    """Makes every reading of a unit, every write and every look back a step of the schedule in `current`."""
    current: list[Schedule] = []

    def stepped(owner, name):
        real = getattr(owner, name)

        def with_step(*arguments):
            if current:
                current[0].step()
            return real(*arguments)

        monkeypatch.setattr(owner, name, with_step)

    for owner, name in [(commit, "_write_once"), (commit, "_write_failures"), (commit, "_reads_back")]:
        stepped(owner, name)
    stepped(ZarrFiles, "put")
    monkeypatch.setattr(commit.time, "sleep", lambda _: None)
    return current


class Campaign:
    """Orders of two commits that saw `seen`: a row is right at any moment, and never failed if anybody had it."""

    def __init__(self, folder: Path, steps: list, arrays, seen: dict[str, list[int]]):
        self.folder, self.steps, self.seen = folder, steps, list(seen.values())
        self.orders = 0
        self.again: list[list[int]] = []  # orders after which a row has to be computed once more
        self.verified: set[bytes] = set()  # stores that `verify` has seen, by what they hold
        store = new_store(folder / "template.zarr", N, unit_rows=N, arrays=arrays)
        self.values = values(store, range(N))
        self.right = {name: self.values[name].astype(spec.dtype) for name, spec in store.manifest.arrays.items()}
        self.anybody = np.any([np.array(codes) == OK for codes in self.seen], axis=0)

    def run(self, turns: tuple[int, ...]) -> list:
        """One order; returns the turns taken, with who could have gone."""
        self.orders += 1
        path = self.folder / f"{self.orders}.zarr"
        shutil.copytree(self.folder / "template.zarr", path, copy_function=os.link)
        reader, returned = open_store(path), []

        def look():
            status = reader.status(0)
            assert not any((status[told == OK] == FAILED).any() for told in returned)
            for row in np.flatnonzero(status == OK).tolist():
                for name, right in self.right.items():
                    try:
                        assert reader.read(name, [row])[0].tolist() == right[row].tolist(), (name, row)
                    except DamagedStore:  # its shard was overwritten by one who failed it, and who looks again
                        assert len(returned) < 2

        def work(codes):
            why = {row: ("damaged", "x") for row, code in enumerate(codes) if code == FAILED}
            returned.append(open_store(path).commit(0, self.values, codes, why))

        schedule = Schedule(turns, look)
        self.steps[:] = [schedule]
        problems = schedule.run([lambda codes=codes: work(codes) for codes in self.seen])
        self.steps.clear()
        order = [who for who, _ in schedule.taken]
        assert problems == [], order
        look()
        status = reader.status(0)
        assert np.isin(status[self.anybody], (OK, PENDING)).all(), (order, status)
        self.verify(path, order)
        if (status == PENDING).any():  # the one who failed it wrote its shard last: nobody's value is left
            self.again.append(order)
            reader.commit(0, self.values, [OK] * N)
            look()
            self.verify(path, order)
        shutil.rmtree(path)
        return schedule.taken

    def verify(self, path: Path, order: list[int]) -> None:
        names = sorted(p for p in path.rglob("*") if p.is_file())
        held = b"".join(p.read_bytes() for p in names if p.name != "zarr.json")
        if held not in self.verified:
            assert [f for f in verify(path) if f.severity == "error"] == [], order
            self.verified.add(held)


SWITCHES = int(os.environ.get("CLIPBANK_TEST_SWITCHES", 1))
"""Orders with at most so many switches are all run: 1 makes 50 a case, 2 about 200, 3 about 700."""


@pytest.mark.parametrize("seen", [AGREED, CROSSED], ids=["one fails a row", "each fails another row"])
def test_no_order_of_two_commits_fails_an_ok_row_or_changes_a_value(tmp_path, steps, seen):
    campaign = Campaign(tmp_path, steps, VECTOR, seen)
    assert every_order(campaign.run, SWITCHES) == campaign.orders >= 40
    assert len(campaign.again) < campaign.orders / 4


@pytest.mark.parametrize("arrays", [VECTOR, PICTURES], ids=["vectors", "pictures, which may begin with black"])
def test_drawn_orders_with_any_number_of_switches(tmp_path, steps, arrays):
    campaign = Campaign(tmp_path, steps, arrays, CROSSED)
    rng = np.random.default_rng(0)
    for _ in range(30):
        campaign.run(tuple(rng.integers(0, 2, 40).tolist()))


def test_pictures_in_every_order_of_few_switches(tmp_path, steps):
    """A shard that lost a row while the file beside it kept its own: the row is not taken for a black picture."""
    campaign = Campaign(tmp_path, steps, PICTURES, AGREED)
    every_order(campaign.run, SWITCHES)
