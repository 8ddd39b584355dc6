"""Where the optional reference material lies, and a skip that says so when it does not."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("CLIPBANK_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors, annotations and real videos beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"reference material not found at {SHARED} (set CLIPBANK_SHARED)")
    return SHARED


@pytest.fixture(scope="module")
def one_thread():
    """Steps as small as those of tests are faster, and repeat to the bit, on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """A folder with the dataset of plain colours (`frame_samples`) and the store of its frames."""
    from frame_samples import colour_dataset, colour_frames

    folder = tmp_path_factory.mktemp("colours")
    colour_dataset(folder)
    colour_frames(folder)
    return folder
