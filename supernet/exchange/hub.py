"""An exported network on a model hub, where ``timm.create_model("hf-hub:USER/NAME")`` finds it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

# What `write_hub_layout` writes and what describes it; traced networks beside it stay here.
FILES = ("config.json", "model.safetensors", "architecture.json", "README.md")


def check_repository(name: str) -> None:
    """Refuse what is not the name of a repository on a hub, before anything is written.

    Raises:
        ValueError: If it is not ``USER/NAME``.
    """
    part = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
    if not re.fullmatch(f"{part}/{part}", name) or ".." in name or "--" in name:
        raise ValueError(
            f"--push takes the name of a repository, USER/NAME, got {name!r}. "
            "Write for example --push ada/found-network."
        )


def push_to_hub(folder: Path, name: str) -> str:
    """Upload a folder that `write_hub_layout` wrote; make the repository if there is none.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        name: ``USER/NAME``; the hub, the user's token and proxies are those of `huggingface_hub`.

    Returns:
        The address of the repository.

    Raises:
        ValueError: If the name is none, or the hub refuses or cannot be reached.
    """
    check_repository(name)
    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message="Add the network and its description",
        )
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"Could not push to {name} at {api.endpoint}: {reason}. Log in with `hf auth login` "
            f"(or set HF_TOKEN) as somebody who may write there. The files are in {folder}."
        ) from error
    return str(address)
