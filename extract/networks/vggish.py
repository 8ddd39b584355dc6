"""VGGish, the audio expert (Hershey et al. 2017, arXiv:1609.09430): entry of the registry, no torch.

Mono at 16 kHz, 128 numbers for every 0.96 s. A row is one example of 96 spectrogram frames: 15,600 samples, of which
the last 240 are shared with the next row.
"""

from __future__ import annotations

from ..weights import Weights, add_weights
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["PCA", "vggish"]

_URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1"
_YOUTUBE8M = {"dataset": "youtube8m", "split": "preliminary version", "classes": 0}

PCA = "vggish_pca.youtube8m"  # the table entry of the post-processing

add_weights(
    Weights(
        name="vggish.youtube8m",
        architecture="vggish",
        filename="vggish-10086976.pth",
        url=f"{_URL}/vggish-10086976.pth",
        hash="sha256:10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
        licence="Apache-2.0",
        trained_on=(_YOUTUBE8M,),
    ),
    Weights(
        name=PCA,
        architecture="vggish_pca",  # a companion: no network loads it alone
        filename="vggish_pca_params-970ea276.pth",
        url=f"{_URL}/vggish_pca_params-970ea276.pth",
        hash="sha256:970ea276",  # as torch.hub's file names have it; that of the network's own file is confirmed
        licence="Apache-2.0",
        trained_on=(_YOUTUBE8M,),
    ),
)


@register_network("vggish")
def vggish(
    *, relu: bool = True, post: bool = False, hop: int = 15360, unit_rows: int = 4096, batch_size: int = 32
) -> NetworkSpec:
    """VGGish on waveforms: `vector` (128).

    Args:
        relu: end with a ReLU, as the torch port does; False gives the values before it, as the TensorFlow code does
            today.
        post: AudioSet's post-processing: PCA with whitening, clipped to +-2, quantised to the whole numbers 0..255.
            Needs one more file (table entry vggish_pca.youtube8m).
        hop: samples from one row to the next on the segment axis; 15360 = 0.96 s.
    """
    return NetworkSpec(
        name="vggish",
        kind="backbone",
        reads="waveform",
        outputs={"vector": ((128,), "feature")},
        builder="extract.networks.vggish_model:VGGish",
        family="vggish",
        options={"relu": bool(relu), "post": bool(post)},
        clip_len=15600,
        fps=16000.0,
        hop=hop,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights="vggish.youtube8m",
        licence="Apache-2.0",
        source="Hershey et al. 2017 (arXiv:1609.09430); checkpoints of harritaylor/torchvggish",
    )
