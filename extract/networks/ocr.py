"""OCR network: a frame in, the words written in it and their vectors out (T2VLAD's ocr expert). The entry, no torch.

RapidOCR runs PaddleOCR's PP-OCRv6 with onnxruntime: text lines are detected, turned upright and recognised (Chinese,
English and other Latin scripts, Japanese). Each word is then embedded by a text network by itself, as MMT and
collaborative-experts do (METHODS of both: a vector a word).
"""

from __future__ import annotations

import functools
from typing import Any

from errors import UserError

from ..weights import Weights, add_weights
from .packages import need_package
from .registry import network_spec, register_network
from .spec import NetworkSpec
from .text_rows import TEXT_BYTES

__all__ = ["MODELS", "ocr"]

MAX_WORDS = 30  # ocr tokens of a video in T2VLAD

_URL = "https://www.modelscope.cn/models/RapidAI/RapidOCR/resolve/v3.10.0/onnx"
_PADDLE = ({"dataset": "paddleocr", "split": "train", "classes": 0},)  # real and synthetic text, not published as a set
MODELS = {  # section of RapidOCR's configuration: its model
    "Det": Weights(
        name="ocr.ppocr_v6_detection",
        architecture="ocr",
        filename="PP-OCRv6_det_small.onnx",
        url=f"{_URL}/PP-OCRv6/det/PP-OCRv6_det_small.onnx",
        package="rapidocr",
        package_path="models/PP-OCRv6_det_small.onnx",
        hash="sha256:090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        licence="Apache-2.0",
        trained_on=_PADDLE,
    ),
    "Cls": Weights(
        name="ocr.ppocr_v2_direction",
        architecture="ocr",
        filename="ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        url=f"{_URL}/PP-OCRv4/cls/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        package="rapidocr",
        package_path="models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        hash="sha256:e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        licence="Apache-2.0",
        trained_on=_PADDLE,
    ),
    "Rec": Weights(
        name="ocr.ppocr_v6_recognition",
        architecture="ocr",
        filename="PP-OCRv6_rec_small.onnx",
        url=f"{_URL}/PP-OCRv6/rec/PP-OCRv6_rec_small.onnx",
        package="rapidocr",
        package_path="models/PP-OCRv6_rec_small.onnx",
        hash="sha256:6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
        licence="Apache-2.0",
        trained_on=_PADDLE,
    ),
}
add_weights(*MODELS.values())


@register_network("ocr")
def ocr(
    *,
    text: str = "minilm",
    text_options: dict[str, Any] | None = None,
    max_words: int = MAX_WORDS,
    text_bytes: int = TEXT_BYTES,
    score_threshold: float = 0.5,
    detection_side: int = 736,
    max_side: int = 2000,
    fps: float = 1.0,
    unit_rows: int = 256,
    batch_size: int = 8,
) -> NetworkSpec:
    """Words written in a frame: `text`, `n_text`, `tokens` (30, C), `n_tokens`. A frame without any has "[]" and 0.

    `text` holds {"word", "box", "score"} in reading order (line by line from the top, each from the left); box = XYXY
    relative to the frame; score = the recogniser's confidence in the word's line. A line is split at its blanks, so a
    Chinese or Japanese one is a single word. Where the words do not fit, those of the lowest score are left out, whole;
    `n_text` and `n_tokens` are the true number of words. `tokens` holds a vector a word, the `max_words` best by score,
    in reading order too. Frames are read at their source's size.

    Args:
        text, text_options: the text network that embeds the words, and its options.
        max_words: rows of `tokens`.
        text_bytes: length of a `text` row.
        score_threshold: lines below it are left out.
        detection_side: frames whose short side is smaller are enlarged to it before lines are looked for: small
            writing is found, and time grows with the square.
        max_side: frames whose long side is larger are reduced to it first.
        fps: of the frame grid.
    """
    words = network_spec(text, **(text_options or {}))
    if words.reads != "text" or "vector" not in words.outputs:
        raise UserError(
            f"ocr: text={text!r} reads {words.reads}: give a text network that has a vector, such as minilm"
        )
    for name, value, least in (
        ("max_words", max_words, 1), ("text_bytes", text_bytes, 2), ("detection_side", detection_side, 32),
        ("max_side", max_side, 32),
    ):  # fmt: skip
        if not isinstance(value, int) or value < least:
            raise UserError(f"ocr: {name} must be a whole number, at least {least}, got {value!r}")
    if not 0 <= score_threshold <= 1:
        raise UserError(f"ocr: score_threshold must be between 0 and 1, got {score_threshold!r}")
    return NetworkSpec(
        name="ocr",
        kind="text",
        reads="rgb_frame",
        outputs={
            "text": ((text_bytes,), "uint8"),
            "n_text": ((), "int32"),
            "tokens": ((max_words, words.outputs["vector"][0][0]), "feature"),
            "n_tokens": ((), "int32"),
        },
        builder=functools.partial(_build, text, dict(text_options or {})),
        family="ocr",
        layer=words.layer,
        options={
            "text": words.recipe(),
            "max_words": max_words,
            "text_bytes": text_bytes,
            "score_threshold": float(score_threshold),
            "detection_side": detection_side,
            "max_side": max_side,
        },
        fps=float(fps),
        resize={"mode": "none"},
        mean=(0.5,) * 3,  # of all three models, which the library applies by itself
        std=(0.5,) * 3,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights=MODELS["Rec"].name,
        licence=f"PP-OCR: Apache-2.0; {words.name}: {words.licence}",
        source="PP-OCRv6 (PaddleOCR, arXiv:2009.09941 and its sequels), package rapidocr; "
        f"words by {words.name} ({words.source})",
        requires=tuple(dict.fromkeys(("rapidocr", "onnxruntime", *words.requires))),
    )


def _build(text: str, text_options: dict[str, Any], spec: NetworkSpec) -> Any:
    for package in ("rapidocr", "onnxruntime"):
        need_package(package, spec.name)
    from .ocr_model import Ocr

    return Ocr(spec, text, text_options)
