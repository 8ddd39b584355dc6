"""What the library networks share: the packages they need, and single files of the Hugging Face hub and its cache."""

from __future__ import annotations

from pathlib import Path

from errors import MachineError, UserError

__all__ = ["hub_file"]


def hub_file(repo: str, filename: str, advice: str) -> Path | None:
    """A file of a hub repository: from the cache (never asking the network), else downloaded into it.

    Args:
        repo: "organisation/model".
        filename: path inside it.
        advice: what to do where it cannot be had; ends the message.

    Returns:
        Its path; None if the repository exists and has no such file.

    Raises:
        UserError: no such repository, no access to it, or neither in the cache nor in reach.
        MachineError: the download broke off.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename)
    if found is not None:
        return Path(found) if isinstance(found, str) else None  # the cache also knows files that do not exist
    url = f"https://huggingface.co/{repo}/resolve/main/{filename}"
    try:
        return Path(hf_hub_download(repo, filename))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{url} is not in the cache of this machine, and the hub is out of reach: {advice}") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{url}: accept the licence of {repo} on its page and log in (hf auth login); {advice}") from (
            error
        )
    except errors.EntryNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(f"the hub has no repository {repo!r}, or it is private; {advice}") from error
    except Exception as error:  # the client raises many kinds for a broken connection or a full disk
        raise MachineError(f"downloading {url} failed ({type(error).__name__}: {error}); {advice}") from error
