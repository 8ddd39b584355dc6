"""The speech network in torch: Whisper and CTC recognisers of transformers, and the words' vectors."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from errors import UserError

from ..weights import combined_hash
from .base import Network
from .model_folder import model_folder
from .registry import create_network
from .spec import NetworkSpec
from .speech import RATE, WINDOW_S
from .text_model import load_library_model, read_config
from .text_rows import pack_items

__all__ = ["SpeechNetwork", "ctc_words", "whisper_words"]

Words = list[dict[str, Any]]  # {"word", "start_s", "stop_s", "score"} in order of time

# Whisper's published test for speech (Radford et al. 2022, arXiv:2212.04356, section 4.5)
NO_SPEECH, LOG_PROBABILITY = 0.6, -1.0

_PUNCTUATION = string.punctuation + "…“”‘’«»¿¡、。，！？"
_NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class SpeechNetwork(Network):
    """Windows of sound -> words with times, and a vector a word. `module` is the recogniser, `text` a text network."""

    def __init__(self, spec: NetworkSpec, model: str, text: str, text_options: dict[str, Any]) -> None:
        super().__init__(spec)
        self.model, self.text_name, self.text_options = model, text, text_options
        self.text: Network | None = None
        folder = model_folder(model, weights=False)
        self.config = read_config(folder)
        self.listen = _listener(self.config, model)
        self.reader, self.tokenizer = _processors(folder, model)
        if self.reader.sampling_rate != RATE:
            raise UserError(f"speech: {model} reads {self.reader.sampling_rate} Hz, expected a model for {RATE} Hz")

    def load_weights(self, weights: str | None) -> None:
        """Recogniser and text network, each with its own weights, or both with the same random:SEED."""
        from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq

        auto = AutoModelForCTC if self.listen is ctc_words else AutoModelForSpeechSeq2Seq
        self.module, digest, self.weights_origin, lineage = load_library_model(
            self.spec, self.model, self.config, auto, weights, unused=("wav2vec2.masked_spec_embed",)
        )
        if self.listen is whisper_words:
            _prepare_whisper(self.module, model_folder(self.model, weights=False), self.spec)
        self.text = create_network(self.text_name, weights, **self.text_options)
        self.text.keep = "vector"
        self.weights_hash = combined_hash(digest, self.text.weights_hash)
        self.lineage = [*lineage, *(step for step in self.text.lineage if step not in lineage)]

    def prepare(self) -> None:
        super().prepare()
        if self.text is not None:
            self.text.to(self.device, self.precision)

    def run(self, batch: dict[str, list]) -> dict[str, np.ndarray]:
        """`Network.run` on "waveforms": B float32 arrays (480000,) at 16 kHz in [-1, 1], None for a row that failed."""
        rows = self.rows_of(batch)
        out = self.blank(len(rows))
        loud = []
        for slot, row in enumerate(rows):
            if row is None:
                continue
            self._check(slot, row)
            if _decibels(row) >= self.spec.options["silence_db"]:
                loud.append(slot)
            elif "text" in out:
                out["text"][slot] = pack_items([], out["text"].shape[1])
        said: dict[int, Words] = {}
        # a batch of long windows gains nothing on a CPU, only Whisper's token by token decoding does
        alone = self.device.type == "cpu" and self.listen is ctc_words
        step = 1 if alone else self.spec.batch_size
        for first in range(0, len(loud), step):
            part = loud[first : first + step]
            with self.inference(), self.enough_memory(len(part)):
                heard = self.listen(self, np.stack([rows[slot] for slot in part]))
            said |= zip(part, heard, strict=True)
        for slot, words in said.items():
            if "text" in out:
                out["text"][slot] = pack_items(words, out["text"].shape[1])
            for name in ("n_text", "n_tokens"):
                if name in out:
                    out[name][slot] = len(words)
        if "tokens" in out:
            self._embed(said, out["tokens"])
        return out

    def hear(self, sound: np.ndarray, **options: Any) -> Any:
        """Windows (B, 480000) as the recogniser reads them, in float32: autocast would round Whisper's log-mel."""
        with torch.autocast(self.device.type, enabled=False):
            return self.reader(list(sound), sampling_rate=RATE, return_tensors="pt", **options)

    def _embed(self, said: dict[int, Words], tokens: np.ndarray) -> None:
        """Each word's vector into its place: (slot, position in time)."""
        places, texts = [], []
        for slot, words in said.items():
            for position, item in enumerate(words[: tokens.shape[1]]):
                places.append((slot, position))
                texts.append(item["word"].strip(_PUNCTUATION) or item["word"])
        if texts:
            tokens[tuple(np.array(places).T)] = self.text.run({"texts": texts})["vector"]


# -- CTC -----------------------------------------------------------------------------------------------------------


def ctc_words(net: SpeechNetwork, sound: np.ndarray) -> list[Words]:
    """Greedy decoding: the best token of each frame, merged into words by the tokenizer; times are whole frames."""
    read = net.hear(sound)
    mask = read.get("attention_mask")
    logits = net.module(
        read[net.module.main_input_name].to(net.device), attention_mask=None if mask is None else mask.to(net.device)
    ).logits
    best, ids = logits.float().softmax(-1).max(-1)
    frame_s = WINDOW_S / ids.shape[1]
    heard = []
    for own, probability in zip(ids.cpu(), best.cpu().numpy(), strict=True):
        decoded = net.tokenizer.decode(own, output_word_offsets=True)
        words = [(w["word"], w["start_offset"], w["end_offset"]) for w in decoded["word_offsets"]]
        heard.append(
            [_item(w, a * frame_s, b * frame_s, float(probability[a:b].mean())) for w, a, b in words if w.strip()]
        )
    return heard


# -- Whisper -------------------------------------------------------------------------------------------------------


def whisper_words(net: SpeechNetwork, sound: np.ndarray) -> list[Words]:
    """Greedy decoding with Whisper's own test for speech; times by the alignment heads' attention."""
    read = net.hear(sound, return_attention_mask=True)
    language = net.spec.options["language"]
    result = net.module.generate(
        read.input_features.to(net.device),
        attention_mask=read.attention_mask.to(net.device),
        return_timestamps=True,
        return_token_timestamps=True,
        return_segments=True,
        temperature=0.0,
        logprob_threshold=LOG_PROBABILITY,
        no_speech_threshold=NO_SPEECH,
        condition_on_prev_tokens=False,
        **({"language": language, "task": "transcribe"} if language else {}),
    )
    return [
        sorted((word for segment in segments for word in _segment_words(net.tokenizer, segment)), key=_start)
        for segments in result["segments"]
    ]


def _segment_words(tokenizer: Any, segment: dict[str, Any]) -> Words:
    """Words of one segment. A token's time is its end; it starts where the token before it ends."""
    special = set(tokenizer.all_special_ids)
    first_time = tokenizer.convert_tokens_to_ids("<|0.00|>")
    ids, ends = segment["tokens"].tolist(), segment["token_timestamps"].tolist()
    chances = _token_probabilities(segment)
    words: list[list] = []  # [text, start, stop, probabilities]
    held: list[int] = []  # tokens that hold part of a character
    start = float(segment["start"])
    for token, end, chance in zip(ids, ends, chances, strict=False):
        if token in special or (first_time is not None and token >= first_time):
            start = end
            continue
        held.append(token)
        piece = tokenizer.decode(held)
        if piece.endswith("\ufffd"):
            continue
        held = []
        if words and not _starts_word(piece, words[-1][0]):
            words[-1][0] += piece
            words[-1][2] = end
            words[-1][3].append(chance)
        else:
            words.append([piece, start, end, [chance]])
        start = end
    return [_item(text, a, b, float(np.mean(p))) for text, a, b, p in words if text.strip()]


def _starts_word(piece: str, before: str) -> bool:
    """A piece starts a word after a space, and in scripts that write none, unless it is punctuation."""
    if piece[:1].isspace() or not before.strip():
        return piece[:1].isspace()
    return bool(piece.strip(_PUNCTUATION)) and bool(_NO_SPACES.match(piece) or _NO_SPACES.search(before[-1:]))


def _token_probabilities(segment: dict[str, Any]) -> list[float]:
    """The probability of each token of a segment, under the constraints that Whisper decodes with."""
    result, (first, stop) = segment["result"], segment["idxs"]
    prompt = len(result["sequences"]) - len(result["scores"])
    steps = range(first - prompt, stop - prompt)
    chances = []
    for step, token in zip(steps, segment["tokens"].tolist(), strict=True):
        chances.append(float(result["scores"][step].float().softmax(-1)[token]))
    return chances


def _prepare_whisper(module: nn.Module, folder: Path, spec: NetworkSpec) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    if not getattr(module.generation_config, "alignment_heads", None):
        raise UserError(
            f"speech: {spec.options['model']} names no alignment_heads in generation_config.json, so words have no "
            "times: take over those of the Whisper it was made from, or choose another model"
        )


# -- both ----------------------------------------------------------------------------------------------------------


def _listener(config: Any, model: str) -> Any:
    if config.model_type == "whisper":
        return whisper_words
    if any(str(name).endswith("ForCTC") for name in getattr(config, "architectures", None) or ()):
        return ctc_words
    raise UserError(f"speech: {model} is a {config.model_type}; expected Whisper or a CTC model (...ForCTC)")


def _processors(folder: Path, model: str) -> tuple[Any, Any]:
    from transformers import AutoFeatureExtractor, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        return (
            AutoFeatureExtractor.from_pretrained(folder, **options),
            AutoTokenizer.from_pretrained(folder, **options),
        )
    except (OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"speech: {model} lacks its feature extractor or tokenizer: {line[:200]}") from error


def _item(word: str, start: float, stop: float, score: float) -> dict[str, Any]:
    start = min(max(start, 0.0), float(WINDOW_S))
    stop = min(max(stop, start), float(WINDOW_S))
    return {"word": word.strip(), "start_s": round(start, 3), "stop_s": round(stop, 3), "score": round(score, 3)}


def _start(item: dict[str, Any]) -> float:
    return item["start_s"]


def _decibels(sound: np.ndarray) -> float:
    """Root mean square in dB of full scale; -inf for silence."""
    power = float(np.mean(np.square(sound, dtype=np.float64)))
    return 10.0 * np.log10(power) if power > 0 else float("-inf")
