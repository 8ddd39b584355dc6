"""Runs code in two processes as torchrun starts them, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_in_two_processes(code: str, folder: Path) -> None:
    """Both run `code` with one thread each, from a script in `folder`. Fails if either does."""
    script = folder / "two_processes_script.py"
    script.write_text("import torch\ntorch.set_num_threads(1)\n" + code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*launch, str(script)], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
