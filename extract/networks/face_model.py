"""dlib's faces behind the one face of every network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from errors import UserError

from .. import weights as weights_module
from .base import Network
from .face import DETECTOR, LANDMARKS, RECOGNITION
from .packages import need_package
from .roi import pack_boxes, source_size
from .spec import NetworkSpec

__all__ = ["Face"]

_CHIP = 150  # pixels of the upright face that the recogniser reads, with a margin of a quarter
_MARGIN = 0.25
_SMALLEST = 80  # pixels of a face that both detectors can find


class Face(Network):
    """Frames -> the best faces, their boxes, scores and vectors. It runs on the CPU (dlib's wheels know no CUDA)."""

    def __init__(self, spec: NetworkSpec) -> None:
        need_package("dlib", spec.name)
        super().__init__(spec)
        self.find: Any = None  # image, upsample -> [(score, dlib.rectangle)]
        self.landmarks: Any = None
        self.recognise: Any = None

    def load_weights(self, weights: str | None) -> None:
        """The models of the package face_recognition_models; there are no others, and no random ones."""
        import dlib

        if weights is not None:
            raise UserError(
                f"face: weights {weights!r}: dlib reads its own models only, those of the package "
                "face_recognition_models (or CLIPBANK_WEIGHTS, by their file names); leave --weights out"
            )
        cnn = self.spec.options["detector"] == "cnn"
        entries = [RECOGNITION, LANDMARKS, *([DETECTOR] if cnn else [])]
        found = [weights_module.resolve("face", entry.name) for entry in entries]
        paths = [str(model.path) for model in found]
        self.recognise = dlib.face_recognition_model_v1(paths[0])
        self.landmarks = dlib.shape_predictor(paths[1])
        self.find = _cnn_finder(dlib, paths[2]) if cnn else _hog_finder(dlib, self.spec.options["score_threshold"])
        # The frontal detector is compiled into dlib: its version stands for it.
        self.weights_hash = weights_module.combined_hash(
            *(entry.hash for entry in entries), "" if cnn else dlib.__version__
        )
        self.weights_origin = ", ".join(dict.fromkeys(model.origin for model in found))
        self.lineage = [dict(step) for entry in entries for step in entry.trained_on]

    def run(self, batch: dict[str, list]) -> dict[str, np.ndarray]:
        """`Network.run` on "frames": B uint8 arrays (H, W, 3) of any size, None for a row that failed."""
        frames = self.rows_of(batch)
        out = self.blank(len(frames))
        slots = [slot for slot, frame in enumerate(frames) if frame is not None]
        rows = []
        for slot in slots:
            frame = frames[slot]
            self._check(slot, frame)
            row = self.detect(np.ascontiguousarray(frame))
            width, height = source_size(batch, slot, frame)
            row["boxes"] = row["boxes"] * torch.tensor([width / frame.shape[1], height / frame.shape[0]] * 2)
            rows.append(row)
        if rows:
            packed = pack_boxes(rows, self.spec.options["top"], self.spec.outputs["roi"][0][1])
            for name in out:
                out[name][slots] = packed[name].numpy()
        return out

    def detect(self, frame: np.ndarray) -> dict[str, torch.Tensor]:
        """Faces of one uint8 frame (H, W, 3), best first: boxes (n, 4) in its pixels, scores, classes, roi (n, 128),
        n_boxes; n <= `top`."""
        import dlib

        options = self.spec.options
        found = [(s, box) for s, box in self._search(frame) if s >= options["score_threshold"]]
        found.sort(key=lambda face: (-face[0], face[1]))
        best = found[: options["top"]]
        chips = []
        for _, box in best:
            shape = self.landmarks(frame, dlib.rectangle(*(round(v) for v in box)))
            chips.append(dlib.get_face_chip(frame, shape, _CHIP, _MARGIN))
        vectors = np.array([self.recognise.compute_face_descriptor(chip) for chip in chips], np.float32)
        height, width = frame.shape[:2]
        boxes = torch.tensor([box for _, box in best], dtype=torch.float32).reshape(-1, 4)
        return {
            "roi": torch.from_numpy(vectors.reshape(-1, self.spec.outputs["roi"][0][1])),
            "boxes": boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2, dtype=torch.float32)),
            "scores": torch.tensor([score for score, _ in best], dtype=torch.float32),
            "classes": torch.zeros(len(best), dtype=torch.int32),
            "n_boxes": torch.tensor(len(found)),
        }

    def _search(self, frame: np.ndarray) -> list[tuple[float, tuple[float, float, float, float]]]:
        """(score, XYXY in the frame's pixels) of every detection, on a frame of at most `max_side`."""
        import dlib

        height, width = frame.shape[:2]
        scale = max(1.0, max(width, height) / self.spec.options["max_side"])
        if scale > 1:
            frame = dlib.resize_image(frame, max(1, round(height / scale)), max(1, round(width / scale)))
        if min(frame.shape[:2]) << self.spec.options["upsample"] < _SMALLEST:
            return []  # and dlib's CNN fails on an image smaller than its filters
        sx, sy = width / frame.shape[1], height / frame.shape[0]
        return [
            (float(score), (box.left() * sx, box.top() * sy, (box.right() + 1) * sx, (box.bottom() + 1) * sy))
            for score, box in self.find(frame, self.spec.options["upsample"])
        ]


def _hog_finder(dlib: Any, threshold: float) -> Any:
    detector = dlib.get_frontal_face_detector()

    def find(image: np.ndarray, upsample: int) -> list[tuple[float, Any]]:
        boxes, scores, _ = detector.run(image, upsample, threshold)
        return list(zip(scores, boxes, strict=True))

    return find


def _cnn_finder(dlib: Any, path: str) -> Any:
    detector = dlib.cnn_face_detection_model_v1(path)
    return lambda image, upsample: [(found.confidence, found.rect) for found in detector(image, upsample)]
