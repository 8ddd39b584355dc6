"""The machine that a benchmark ran on: part of every figure."""

import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.provenance import cpu_name, versions

__all__ = ["machine", "machine_line", "print_machine"]


def machine() -> dict:
    """CPU, cores, memory, load, Python and library versions."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions(),
    }


def machine_line() -> str:
    """What of it stands in a document."""
    here = machine()
    return "; ".join(f"{name} {here[name]}" for name in ("cpu", "cores", "python", "torch", "numpy", "av")) + "."


def print_machine() -> None:
    for name, value in machine().items():
        print(f"{name:14} {value}", flush=True)
