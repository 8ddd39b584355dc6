"""Speech network: 30 s of sound in, its words with times and their vectors out (T2VLAD's speech expert). No torch.

The recogniser is any Whisper or CTC model of transformers; each word is then embedded by a text network by itself, as
the word vectors of the speech expert are (MMT and collaborative-experts: a vector a word, in order of time).
"""

from __future__ import annotations

import functools
from typing import Any

from errors import UserError

from .model_folder import short_name
from .registry import network_spec, register_network
from .spec import NetworkSpec
from .text_rows import TEXT_BYTES

__all__ = ["RATE", "WINDOW_S", "speech"]

RATE = 16000
WINDOW_S = 30  # what Whisper reads at once
MAX_WORDS = 112  # speech tokens of a video in T2VLAD


@register_network("speech")
def speech(
    *,
    model: str = "openai/whisper-base",
    language: str | None = None,
    text: str = "minilm",
    text_options: dict[str, Any] | None = None,
    max_words: int = MAX_WORDS,
    text_bytes: int = TEXT_BYTES,
    silence_db: float = -60.0,
    unit_rows: int = 256,
    batch_size: int = 4,
) -> NetworkSpec:
    """Words said in windows of 30 s: `text`, `n_text`, `tokens` (112, C), `n_tokens`.

    `text` holds {"word", "start_s", "stop_s", "score"} in order of time, seconds from the window's start, score = the
    recogniser's mean probability; whole words are dropped from the end until they fit. `n_text` and `n_tokens` are the
    true number of words. `tokens` holds one vector a word, each word embedded alone. A word that a window's edge cuts
    is heard in part by both windows.

    Args:
        model: Whisper or a CTC model (wav2vec2, HuBERT ...): a local folder, or the hub's "owner/name".
        language: that a multilingual Whisper is to expect, e.g. "en"; None: it detects it in each window.
        text, text_options: the text network that embeds the words, and its options.
        max_words: rows of `tokens`.
        text_bytes: length of a `text` row.
        silence_db: a window whose root mean square is below this (dB of full scale) holds no words and is not sent to
            the recogniser, which would invent some. Whisper's own test for speech (its published thresholds: mean log
            probability below -1 and no-speech probability above 0.6) is applied to the others.
    """
    words = network_spec(text, **(text_options or {}))
    if words.kind != "text" or "vector" not in words.outputs:
        raise UserError(f"speech: text={text!r} is a {words.kind} network, not one that reads text")
    if not isinstance(max_words, int) or max_words < 1:
        raise UserError(f"speech: max_words must be a positive number, got {max_words!r}")
    if not isinstance(text_bytes, int) or text_bytes < 2:
        raise UserError(f"speech: text_bytes must be at least 2, got {text_bytes!r}")
    if not silence_db < 0:
        raise UserError(f"speech: silence_db is in dB of full scale and must be negative, got {silence_db!r}")
    short = short_name(model)
    return NetworkSpec(
        name="speech",
        kind="text",
        reads="waveform",
        outputs={
            "text": ((text_bytes,), "uint8"),
            "n_text": ((), "int32"),
            "tokens": ((max_words, words.outputs["vector"][0][0]), "feature"),
            "n_tokens": ((), "int32"),
        },
        builder=functools.partial(_build, model, text, dict(text_options or {})),
        family="speech",
        layer=words.layer,
        options={
            "model": short,
            "language": language,
            "text": words.recipe(),
            "max_words": max_words,
            "text_bytes": text_bytes,
            "silence_db": float(silence_db),
        },
        clip_len=RATE * WINDOW_S,
        fps=float(RATE),
        hop=RATE * WINDOW_S,
        unit_rows=unit_rows,
        batch_size=batch_size,
        licence=f"{short}: {_licence(short)}; {words.name}: {words.licence}",
        source=f"transformers, {short}; words by {words.name} ({words.source})",
        requires=tuple(dict.fromkeys(("transformers", *words.requires))),
    )


def _licence(model: str) -> str:
    return "Apache-2.0" if model.startswith("openai/whisper-") else "see the model's card"


def _build(model: str, text: str, text_options: dict[str, Any], spec: NetworkSpec) -> Any:
    from .speech_model import SpeechNetwork

    return SpeechNetwork(spec, model, text, text_options)
