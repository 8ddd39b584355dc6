"""Models kept as a folder of files, as transformers writes them: a local folder, or a repository of the hub.

Only safetensors are read and no code that comes with a model is run.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
from pathlib import Path

from errors import UserError

from ..weights import file_hash, weights_folders

__all__ = ["find_model", "folder_hash", "model_folder", "short_name"]

WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
CONFIG_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "normalizer.json", "*.model",
)  # fmt: skip
CARD = "README.md"  # the model card: licence, data sets
SENTENCE_FILES = ("modules.json", "1_Pooling/config.json")  # sentence-transformers: how its vector is pooled


def find_model(name: str) -> Path | None:
    """The folder of a model whose weights are on this machine (a folder, or the hub's cache); None if they are not."""
    folder = _local(name)
    return folder if folder is not None and (folder / "config.json").is_file() and _has_weights(folder) else None


def model_folder(name: str, *, weights: bool = True) -> Path:
    """The folder that holds a model's files, fetched from the hub if they are not on this machine.

    Args:
        name: a local folder; or a repository of the hub, "owner/name", also as a folder below one of CLIPBANK_WEIGHTS.
        weights: False for the configuration and the tokenizer alone.

    Raises:
        UserError: no such folder or repository, or it lacks config.json or safetensors.
    """
    folder = _local(name)
    cached = not Path(name).expanduser().is_dir()  # a cached repository may hold its configuration alone
    if folder is None or (cached and weights and not _has_weights(folder)):
        folder = _fetch(name, weights)
    if not (folder / "config.json").is_file():
        raise UserError(f"model {name!r}: {folder} has no config.json: it is no folder of a transformers model")
    if weights and not _has_weights(folder):
        raise UserError(
            f"model {name!r}: {folder} has no model.safetensors (other formats may carry code and are not read): "
            "convert it with transformers' save_pretrained, or choose another model"
        )
    return folder


def folder_hash(folder: Path) -> str:
    """ "sha256:..." over the names and bytes of all weight, configuration and tokenizer files of a model's folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in (*WEIGHT_FILES, *CONFIG_FILES)):
            digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def short_name(name: str) -> str:
    """What a recipe calls a model: the hub's name, or a local folder's own name without the way to it."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors"))


def _local(name: str) -> Path | None:
    path = Path(name).expanduser()
    for folder in (path, *(root / name for root in weights_folders())):
        if folder.is_dir():
            return folder
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"model {name!r}: no such folder")
    try:
        return Path(_snapshot(name, local_files_only=True))
    except (OSError, ValueError, ImportError):  # not in the hub's cache
        return None


def _near(name: str) -> str:
    """Repositories of like names in the hub's cache, as the beginning of a hint."""
    from huggingface_hub import constants

    cached = [
        f.name.removeprefix("models--").replace("--", "/") for f in Path(constants.HF_HUB_CACHE).glob("models--*")
    ]
    near = difflib.get_close_matches(name, [known for known in cached if known != name], n=3)
    return f"did you mean {', '.join(near)} (in the cache)? " if near else ""


def _fetch(name: str, weights: bool) -> Path:
    wanted = [*CONFIG_FILES, *SENTENCE_FILES, CARD, *(WEIGHT_FILES if weights else ())]
    try:
        return Path(_snapshot(name, allow_patterns=wanted))
    except ImportError as error:
        raise UserError(f"model {name!r} is no folder here, and the hub needs: pip install 'clipbank[text]'") from error
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {name!r} is no folder here and could not be fetched from the hub ({line[:200]}). {_near(name)}"
            "Download it elsewhere (configuration, tokenizer or processor, and *.safetensors) and give its folder in "
            f"place of the name, or put it into a folder of CLIPBANK_WEIGHTS as {name}"
        ) from error


def _snapshot(name: str, **options) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, **options)
