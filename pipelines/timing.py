"""How long a row takes on this machine: one forward pass, timed, for `plan`."""

from __future__ import annotations

import time

import numpy as np

from extract.networks import create_network
from extract.networks.spec import READS
from pipelines.extraction import choose_device
from pipelines.planning import Job

PLAIN_FRAME = (720, 1280)  # height, width assumed where the network takes frames of any size


def seconds_a_row(job: Job, device: str = "auto") -> float:
    """Seconds of network time a row: one warm forward pass of one batch of grey frames, with random weights.

    Decoding overlaps with it; where it takes longer, extraction takes as long as decoding.
    """
    network = create_network(job.network, weights="random:0" if job.spec.weights else None, **job.options)
    network.keep = job.keep
    network.to(choose_device(device), job.request.precision)
    height, width = job.spec.input_size or PLAIN_FRAME
    shape = (height, width, job.spec.channels)
    if READS[job.spec.reads][0] == "THWC":
        shape = (job.spec.clip_len, *shape)
    size = min(job.layout.batch_size, 4)
    whole = np.array([[0, 0, 1, 1]], np.float32)
    batch = {"frames": [np.full(shape, 128, np.uint8)] * size, "boxes": [whole if job.boxes else None] * size}
    network.run(batch)
    start = time.perf_counter()
    network.run(batch)
    return (time.perf_counter() - start) / size
