"""Every registered network on real videos: bfloat16 stays close to float32, and different rows differ."""

import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from network_cases import CASES, WEIGHTS
from tolerances import TOLERANCES

from extract.audio import open_audio
from extract.decode import open_source
from extract.networks import create_network, network_spec
from extract.networks.spec import READS
from extract.transforms import Resize
from extract.weights import RandomWeightsWarning

warnings.simplefilter("ignore", RandomWeightsWarning)
VIDEOS = ("activitynet_v_GGSY1Qvo990.mp4", "kinetics_flipping_a_pancake.mkv")
# Which boxes a detector keeps, and which words are read, may turn on one bit; text and pictures are not from videos.
FEATURES = [
    case
    for case in CASES
    if network_spec(case.partition("+")[0], **CASES[case]).kind == "backbone" and not {"frames", "flow_images"} & {case}
]


@pytest.mark.parametrize("case", [case for case in FEATURES if case != "null"])
def test_bf16_stays_close_on_real_video(shared, case):
    name = case.partition("+")[0]
    spec = network_spec(name, **CASES[case])
    if missing := [package for package in spec.requires if find_spec(package) is None]:
        pytest.skip(f"{name} needs {', '.join(missing)}, which this environment lacks")
    net = create_network(name, WEIGHTS.get(case, "random:0"), **CASES[case])
    net.keep = "vector"
    batch = {READS[spec.reads][3]: [row for video in VIDEOS for row in rows_of(shared / "videos" / video, spec)]}
    full, half = net.run(batch)["vector"], net.to("cpu", "bf16").run(batch)["vector"]
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() >= TOLERANCES["bf16"]["cosine"]
    assert np.abs(full[0] - full[2]).max() > 1e-2 * full.std()


def rows_of(path, spec) -> list:
    """Two rows of a video, as the network reads them; where it reads flow, two frames' brightness stands for it."""
    if spec.reads == "waveform":
        seconds = spec.clip_len / spec.fps
        with open_audio(path, round(spec.fps)) as source:
            return [source.read(start, start + seconds)[0] for start in (1.0, 4.0)]
    wanted = np.concatenate([start + np.arange(spec.clip_len) for start in (20, 100)])
    with open_source(path) as source:
        frames = np.stack([frame for _, frame in source.read(wanted, Resize(**spec.resize))])
    frames = frames[..., : spec.channels]
    return list(frames) if READS[spec.reads][0] == "HWC" else [frames[: spec.clip_len], frames[spec.clip_len :]]
