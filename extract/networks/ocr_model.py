"""RapidOCR behind the one face of every network, and the words' vectors."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
import torch

from errors import UserError

from .. import weights as weights_module
from .base import Network
from .ocr import MODELS
from .registry import create_network
from .spec import NetworkSpec
from .text_rows import pack_items, unpack_items

__all__ = ["Ocr", "keep_best", "line_words"]

Words = list[dict[str, Any]]  # {"word", "box", "score"} in reading order

# All that RapidOCR can be told, so that other defaults in a later version change nothing (values of 3.10.0). The
# threshold is applied by us: the library applies its own to lines and words in a way that can part them.
_SETTINGS = {
    "Global.use_det": True, "Global.use_cls": True, "Global.use_rec": True, "Global.text_score": 0.0,
    "Global.use_preprocess_img": True, "Global.min_side_len": 30,
    "Global.use_vertical_padding": True, "Global.min_height": 30, "Global.width_height_ratio": 8,
    "Global.return_word_box": True, "Global.return_single_char_box": True, "Global.log_level": "critical",
    "Det.limit_type": "min", "Det.mean": [0.5] * 3, "Det.std": [0.5] * 3, "Det.thresh": 0.3, "Det.box_thresh": 0.5,
    "Det.max_candidates": 1000, "Det.unclip_ratio": 1.6, "Det.use_dilation": True, "Det.score_mode": "fast",
    "Cls.cls_image_shape": [3, 48, 192], "Cls.cls_batch_num": 6, "Cls.cls_thresh": 0.9, "Cls.label_list": ["0", "180"],
    "Rec.rec_img_shape": [3, 48, 320], "Rec.rec_batch_num": 6, "Rec.lang_type": "ch",
    "EngineConfig.onnxruntime.inter_op_num_threads": 1, "EngineConfig.onnxruntime.use_cuda": False,
}  # fmt: skip


class Ocr(Network):
    """Frames -> words with places, and a vector a word. The reader runs on the CPU, frame by frame; `text` is a network
    of its own on the device."""

    def __init__(self, spec: NetworkSpec, text: str, text_options: dict[str, Any]) -> None:
        super().__init__(spec)
        self.text_name, self.text_options = text, text_options
        self.engine: Any = None
        self.text: Network | None = None

    def load_weights(self, weights: str | None) -> None:
        """The reader's models from its package; `random:SEED` fills the text network alone, words stay words."""
        from rapidocr import EngineType, RapidOCR

        if weights is not None and not weights.startswith("random:"):
            raise UserError(
                f"ocr: weights {weights!r}: its models are those of the package rapidocr, which CLIPBANK_WEIGHTS may "
                "hold by their file names; random:SEED fills the text network alone"
            )
        options = self.spec.options
        found = {section: weights_module.resolve("ocr", entry.name) for section, entry in MODELS.items()}
        settings = _SETTINGS | {
            "Global.max_side_len": options["max_side"],
            "Det.limit_side_len": options["detection_side"],
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
            **{f"{section}.engine_type": EngineType.ONNXRUNTIME for section in MODELS},
            **{f"{section}.model_path": str(model.path) for section, model in found.items()},
        }
        self.engine = RapidOCR(params=settings)
        self.text = create_network(self.text_name, weights, **self.text_options)
        self.text.keep = "vector"
        # The library's own steps between its models decide the words too.
        version = ".".join(metadata.version("rapidocr").split(".")[:2])
        self.weights_hash = weights_module.combined_hash(
            *(entry.hash for entry in MODELS.values()), version, self.text.weights_hash
        )
        origins = [*(model.origin for model in found.values()), self.text.weights_origin]
        self.weights_origin = ", ".join(dict.fromkeys(origins))
        self.lineage = [dict(step) for step in MODELS["Rec"].trained_on]
        self.lineage += [step for step in self.text.lineage if step not in self.lineage]

    def prepare(self) -> None:
        super().prepare()
        if self.text is not None:
            self.text.to(self.device, self.precision)

    def run(self, batch: dict[str, list]) -> dict[str, np.ndarray]:
        """`Network.run` on "frames": B uint8 arrays (H, W, 3) of any size, None for a row that failed."""
        frames = self.rows_of(batch)
        out = self.blank(len(frames))
        best: dict[int, Words] = {}
        for slot, frame in enumerate(frames):
            if frame is None:
                continue
            self._check(slot, frame)
            words = self.read(frame)
            for name in out.keys() & {"n_text", "n_tokens"}:
                out[name][slot] = len(words)
            if "text" in out:
                out["text"][slot] = _packed(words, out["text"].shape[1])
            best[slot] = keep_best(words, self.spec.options["max_words"])
        if "tokens" in out:
            self._embed(best, out["tokens"])
        return out

    def read(self, frame: np.ndarray) -> Words:
        """The words of one uint8 frame (H, W, 3), in reading order; boxes relative to it, to 4 decimals."""
        found = self.engine(np.ascontiguousarray(frame[..., ::-1]))  # BGR
        if found.txts is None:
            return []
        scale = np.array([frame.shape[1], frame.shape[0]], np.float64)
        words = []
        for line, score, corners, characters in zip(
            found.txts, found.scores, found.boxes, found.word_results, strict=True
        ):
            if score < self.spec.options["score_threshold"]:
                continue
            for word, points in line_words(line, corners, [box for _, _, box in characters]):
                relative = np.clip(points / scale, 0.0, 1.0)
                box = [round(float(v), 4) for v in (*relative.min(0), *relative.max(0))]
                words.append({"word": word, "box": box, "score": round(float(score), 4)})
        return words

    def _embed(self, words: dict[int, Words], tokens: np.ndarray) -> None:
        """Each word's vector into its place: (slot, position)."""
        places = [(slot, position) for slot, own in words.items() for position in range(len(own))]
        if places:
            texts = [item["word"] for own in words.values() for item in own]
            tokens[tuple(np.array(places).T)] = self.text.run({"texts": texts})["vector"]


def line_words(line: str, corners: np.ndarray, characters: list[Any]) -> list[tuple[str, np.ndarray]]:
    """A line split at its blanks: (word, its corner points (n, 2)) from left to right.

    Args:
        line: as recognised.
        corners: (4, 2) of the line, pixels.
        characters: (4, 2) of each character that is no blank; where their number is another, every word has the
            line's place.
    """
    words, places, start = line.split(), [], 0
    for word in words:
        own = characters[start : start + len(word)]
        start += len(word)
        places.append(np.asarray(own, np.float64).reshape(-1, 2))
    if start != len(characters):
        places = [np.asarray(corners, np.float64)] * len(words)
    return list(zip(words, places, strict=True))


def keep_best(words: Words, most: int) -> Words:
    """The `most` words of highest score, in their own order; of equal ones the first."""
    return [words[i] for i in sorted(_by_score(words)[:most])]


def _by_score(words: Words) -> list[int]:
    return sorted(range(len(words)), key=lambda i: -words[i]["score"])


def _packed(words: Words, limit: int) -> np.ndarray:
    """A `text` row of the words of highest score that fit, in reading order."""
    fitting = len(unpack_items(pack_items([words[i] for i in _by_score(words)], limit)))
    return pack_items(keep_best(words, fitting), limit)
