"""Who computed what, where, with which versions: facts about a run, never part of a hash."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import socket
from datetime import UTC, datetime

PACKAGES = ("clipbank", "torch", "torchvision", "numpy", "av", "zarr", "tensorstore")


def run_facts(device: str) -> dict:
    """Host, user, start time, device and library versions of this process."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "user": _user(),
        "pid": os.getpid(),
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def run_name(facts: dict) -> str:
    """A name no other run has: time, host and process."""
    return f"{facts['started'].replace(':', '').replace('+0000', 'Z')}-{facts['host']}-{facts['pid']}"


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return str(os.getuid())
