"""small3d on optical flow, as a network of one's own: `--backbone py:benchmarks/small3d_flow.py:small3d_flow`.

The registry has small3d for RGB clips. This is the same network with two input channels, u and v, so that toy kitchen
can show what a flow stream adds. Sampled and resized as small3d, whose family it belongs to.
"""

from extract.networks.clip_spec import clip_spec, flow_gain
from extract.networks.small3d import CHANNELS, map_shape


def small3d_flow(
    *,
    layer="layer2",
    clip_len=16,
    stride=1,
    fps=15.0,
    resize=None,
    classes=400,
    unit_rows=64,
    batch_size=16,
    flow_bound=20.0,
    flow_scale=1.0,
):
    """The spec: reads flow, 8-bit images u then v as `extract --flow METHOD` makes them; layers as small3d's."""
    gain = flow_gain("small3d_flow", flow_bound, flow_scale)
    return clip_spec(
        "small3d_flow",
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(1, 1, 1),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize={"mode": "squash", "size": 112},
        classes=classes,
        reads="flow",
        builder=_build,
        family="small3d",
        options={"classes": classes, "flow_bound": flow_bound, "flow_scale": flow_scale},
        stride=stride,
        fps=float(fps),
        mean=(0.5,) * 2,
        std=(0.5 / gain,) * 2,
        value_clip=1.0,
        unit_rows=unit_rows,
        batch_size=batch_size,
        licence="Apache-2.0",
        source="this project",
    )


def _build(spec):
    from torch import nn

    from extract.networks.clip_model import ClipBackbone
    from extract.networks.small3d_model import SmallConv3d

    module = SmallConv3d(spec.layer, spec.options["classes"])
    for unit in (module.stem.frames, module.stem.differences):
        old = unit.conv
        unit.conv = nn.Conv3d(2, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)

    class Small3dFlow(ClipBackbone):
        """The small 3D network on flow."""

        stem, head = "stem.frames.conv.weight", "fc."

    return Small3dFlow(spec, module)
