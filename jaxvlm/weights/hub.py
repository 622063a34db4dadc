"""Finds a source's files: a local folder or file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from jaxvlm.errors import UserError

# Weights of other frameworks and training states are not downloaded.
_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"]


def find_source(spec: str) -> Path:
    """The folder or file that `spec` names; downloads it if it is on the hub.

    Args:
      spec: a path, or a name on the hub such as "openai/clip-vit-large-patch14-336", with "@" and a branch, tag or
        commit after it, if not of the main branch. Cached files are not downloaded again; private
        repositories need `hf auth login`.

    Raises:
      UserError: no such path, no such repository, or the hub cannot be reached.
    """
    path = Path(spec).expanduser()
    if path.exists():
        return path
    name, _, revision = spec.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise UserError(f"{spec} is neither a folder or file that is here nor a name on the hub (owner/name)")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=_FILES))
    except Exception as error:  # of the hub client, of HTTP, of the file system: a dozen unrelated types
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{spec} is no folder here, and the hub did not give it ({type(error).__name__}: {reason}); if it is a "
            f"run, train that first; else fetch it where there is a network (`hf download {name}`) and pass the folder"
        ) from error
