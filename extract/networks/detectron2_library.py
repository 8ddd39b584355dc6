"""`d2:CONFIG[:WEIGHTS]`: any generalized R-CNN of an installed detectron2 as a detector.

CONFIG is a name of its model zoo (COCO-Detection/faster_rcnn_R_101_FPN_3x, with or without .yaml) or the path of a
.yaml of one's own; WEIGHTS is the path of a checkpoint, by default the zoo's. For Faster R-CNN R50-FPN and X101-FPN
this is not needed: faster_rcnn_r50_fpn and faster_rcnn_x101_fpn load the same checkpoints without detectron2.
"""

from __future__ import annotations

import difflib
import hashlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from errors import UserError

from ..weights import TABLE, Weights, add_weights
from .registry import register_library
from .spec import NetworkSpec, box_outputs

__all__ = ["detectron2_model"]

_RANDOM_SCALE = (  # as for our own Faster R-CNN, by detectron2's names
    ("*.conv3.norm.weight", 0.2),
    ("*.fpn_output*.weight", 0.25),
    ("proposal_generator.rpn_head.objectness_logits.weight", 0.2),
    ("proposal_generator.rpn_head.anchor_deltas.weight", 0.08),
    ("roi_heads.box_predictor*.cls_score.weight", 0.2),
    ("roi_heads.box_predictor*.bbox_pred.weight", 0.2),
)


@register_library("d2")
def detectron2_model(
    model: str,
    *,
    roi_feature: str = "pooled",
    top: int = 10,
    score_threshold: float = 0.0,
    nms_threshold: float | None = None,
    proposals: int | None = None,
    classes: int | None = None,
    fps: float = 2.0,
    unit_rows: int = 256,
    batch_size: int = 4,
) -> NetworkSpec:
    """A detector of detectron2 with the outputs of `faster_rcnn_r50_fpn`; classes count from 0, without background.

    Args:
        model: "CONFIG" or "CONFIG:WEIGHTS".
        roi_feature: "pooled" (the box head's input, spatial max; for a C4 network the output of its last stage) or "fc"
            (what the box classifier reads; the last stage's in a cascade).
        top, score_threshold: as for `faster_rcnn_r50_fpn`.
        nms_threshold, proposals, classes (background included): the config's unless given.
        fps: of the frame grid.

    Raises:
        UserError: detectron2 is missing, no such config (near matches are listed), or no generalized R-CNN.
    """
    if find_spec("detectron2") is None:
        raise UserError(
            f"d2:{model} needs detectron2: pip install --no-build-isolation "
            "'git+https://github.com/facebookresearch/detectron2.git' (it compiles for some minutes). Checkpoints of "
            "Faster R-CNN R50-FPN and X101-FPN load without it: faster_rcnn_r50_fpn, faster_rcnn_x101_fpn"
        )
    if roi_feature not in ("pooled", "fc"):
        raise UserError(f"d2:{model}: roi_feature must be pooled or fc, got {roi_feature!r}")
    from detectron2.config import get_cfg

    from .detectron2_library_model import Detectron2Detector, roi_channels

    config, _, weights = model.partition(":")
    path, name, own = _config_file(config)
    cfg = get_cfg()
    try:
        cfg.merge_from_file(str(path), allow_unsafe=not own)  # the zoo's are part of the package; some hold code
    except Exception as error:  # yacs and yaml raise many kinds for a foreign file
        raise UserError(f"d2:{config}: {path} is not a config of detectron2: {str(error)[:200]}") from error
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise UserError(
            f"d2:{config} is a {cfg.MODEL.META_ARCHITECTURE}: only networks of type GeneralizedRCNN have RoI features"
        )
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = False  # only boxes are asked for
    cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.DETECTIONS_PER_IMAGE = -1  # `top` cuts later, so that n_boxes can count them all
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(score_threshold)
    if nms_threshold is not None:
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = float(nms_threshold)
    if proposals is not None:
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = int(proposals)
    if classes is not None:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = int(classes) - 1
    cfg.MODEL.WEIGHTS = ""  # a path of some machine, or the zoo's: the weights have a hash of their own
    order = -1 if cfg.INPUT.FORMAT == "BGR" else 1
    return NetworkSpec(
        name=f"d2:{name}",
        kind="detector",
        reads="rgb_frame",
        outputs=box_outputs(top, roi_channels(cfg, roi_feature)),
        builder=partial(Detectron2Detector, cfg=cfg, weights=weights),
        family="detector",
        layer=roi_feature,
        options={
            "top": top,
            "score_threshold": float(score_threshold),
            "nms_threshold": float(cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST),
            "proposals": int(cfg.MODEL.RPN.POST_NMS_TOPK_TEST),
            "classes": int(cfg.MODEL.ROI_HEADS.NUM_CLASSES) + 1,
            "channels": str(cfg.INPUT.FORMAT),
        },
        fps=float(fps),
        resize={"mode": "detector", "size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST},
        mean=tuple(float(v) / 255 for v in cfg.MODEL.PIXEL_MEAN[::order]),
        std=tuple(float(v) / 255 for v in cfg.MODEL.PIXEL_STD[::order]),
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights=_zoo_entry(name),
        random_scale=_RANDOM_SCALE,
        licence="CC-BY-SA-3.0 (the model zoo's weights)",
        source="facebookresearch/detectron2",
        requires=("detectron2",),
        code_hash=f"sha256:{hashlib.sha256(cfg.MODEL.dump().encode()).hexdigest()}",
    )


def _config_file(config: str) -> tuple[Path, str, bool]:
    """(path, name, is one's own) of a config of the model zoo, or of a file."""
    own = Path(config).expanduser()
    if own.suffix in (".yaml", ".yml") and own.is_file():
        return own, own.name, True
    zoo = Path(next(iter(find_spec("detectron2.model_zoo").submodule_search_locations))) / "configs"
    known = {str(path.relative_to(zoo).with_suffix("")): path for path in zoo.rglob("*.yaml")}
    name = config.removesuffix(".yaml")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        hint = f"did you mean {', '.join(near)}?" if near else "see detectron2/model_zoo/configs"
        raise UserError(f"d2:{config}: no such file, and the model zoo has no config of that name: {hint}")
    return known[name], name, False


def _zoo_entry(name: str) -> str:
    """The table entry of a zoo config's published weights, added when it is first asked for; "" if it has none."""
    from detectron2 import model_zoo

    try:
        url = model_zoo.get_checkpoint_url(name)
    except RuntimeError:  # detectron2's word for a config without published weights
        url = ""
    entry = f"d2:{name}.zoo"
    if url and entry not in TABLE:
        add_weights(
            Weights(
                name=entry,
                architecture=f"d2:{name}",
                filename=url.rpartition("/")[2],
                url=url,
                licence="CC-BY-SA-3.0",
                trained_on=({"dataset": name.partition("/")[0], "split": "train", "classes": 0},),
            )
        )
    return entry if url else ""
