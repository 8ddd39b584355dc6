"""small3d on optical flow, as a network of one's own: `--backbone py:benchmarks/small3d_flow.py:small3d_flow`.

The registry has small3d for RGB clips. This is the same network with two input channels, u and v, so that toy kitchen
can show what a flow stream adds. Sampled and resized as small3d, whose family it belongs to.
"""

from dataclasses import replace

from extract.networks.clip_spec import flow_gain
from extract.networks.small3d import small3d


def small3d_flow(*, flow_bound=20.0, flow_scale=1.0, **options):
    """The spec: reads flow, 8-bit images u then v as `extract --flow METHOD` makes them; all else as small3d's."""
    gain = flow_gain("small3d_flow", flow_bound, flow_scale)
    spec = small3d(**options)
    return replace(
        spec,
        name="small3d_flow",
        reads="flow",
        builder=_build,
        options={**spec.options, "flow_bound": flow_bound, "flow_scale": flow_scale},
        mean=(0.5,) * 2,
        std=(0.5 / gain,) * 2,
        value_clip=1.0,
        weights="",
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
