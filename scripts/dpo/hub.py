"""Downloading one pinned revision from the Hugging Face hub, and saying plainly what went wrong."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dpo.cli import UserError


def download(
    kind: str, repo: str, revision: str, folder: Path, is_wanted: Callable[[str], bool], instead: str = ""
) -> str:
    """Download the wanted files of a repository into `folder`.

    Args:
        kind: "model" or "dataset".
        repo: `owner/name`.
        revision: commit, or a name that stands for one.
        folder: where the files go, under their names in the repository.
        is_wanted: tells by its name whether a file is needed.
        instead: what else the user could do where the hub cannot be reached, as the end of a sentence.

    Returns:
        the commit that the revision stands for.

    Raises:
        UserError: the hub has no such thing, refuses it, or cannot be reached.
    """
    # Plain HTTP: it reports what went wrong in a second; the Xet protocol tries for over a minute, then dies untyped.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import httpx
    from huggingface_hub import constants, dataset_info, hf_hub_download, model_info
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    information = model_info if kind == "model" else dataset_info
    try:
        # Not `snapshot_download`: it waits for ever for the list of files from a hub that does not answer.
        info = information(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = [file.rfilename for file in info.siblings if is_wanted(file.rfilename)]
        if outside := [file for file in files if lies_outside(file)]:
            raise UserError(
                f"{repo} has a file called {outside[0]!r}, a place outside the repository; take another {kind}"
            )
        for file in files:
            hf_hub_download(repo, file, repo_type=kind, revision=info.sha, local_dir=folder)
    except HFValidationError as error:
        raise UserError(f"`repo` of the {kind} in config.yaml: {error}") from None
    except RevisionNotFoundError:
        raise UserError(
            f"the hub has no revision {revision} of {repo}: check `revision` of the {kind} in config.yaml"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no {kind} {repo}, or keeps it from you: check `repo` of the {kind} in config.yaml; "
            f"for a private or gated {kind} set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused {repo}: {first_line(error)}") from None
    except (httpx.HTTPError, OSError) as error:
        raise UserError(
            f"{repo} could not be downloaded from the hub: {first_line(error)}\n"
            f"check the network and the free disk space{instead}"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return info.sha


def lies_outside(file: str) -> bool:
    """Tell whether a name that a repository gives a file is an absolute path, an address, or climbs out of a folder."""
    return file.startswith("/") or "://" in file or "::" in file or ".." in file.replace("\\", "/").split("/")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its type where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
