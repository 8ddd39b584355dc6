"""Workers are counted by the cores that the process may use, not by the machine's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores")
def test_a_process_bound_to_one_core():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from extract.cores import usable_cores\n"
        "from pipelines.extraction import decoder_threads, default_decode_workers\n"
        "print(usable_cores(), default_decode_workers('cuda:0'), decoder_threads(1))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1"]
