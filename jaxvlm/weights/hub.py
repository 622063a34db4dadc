"""Finds a source's files: a local folder or file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from jaxvlm.errors import UserError

# Weights of other frameworks and training states are not downloaded.
_SMALL = (".json", ".model", ".txt", ".jinja")
_WEIGHTS = (".safetensors", ".bin")
# Forms of a whole model's weights, in the order in which `reading.open_tensors` looks for them: marker, files.
_FORMS = (
    ("model.safetensors", "model.safetensors"),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("*.safetensors", "*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin"),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
_EXTRAS = ("adapter_model.*", "mm_projector.bin", "non_lora_trainables.bin")  # read with or without a whole model


def chosen_files(names: Sequence[str]) -> list[str]:
    """The files of a repository that are downloaded: the small ones, and one form of the weights in each folder.

        [config.json  model.safetensors  pytorch_model.bin  flax_model.msgpack] -> [config.json  model.safetensors]

    Args:
      names: all files of the repository, with "/" between folders.
    """
    chosen = [name for name in names if name.endswith(_SMALL)]
    for folder in sorted({posixpath.dirname(name) for name in names}):
        files = {posixpath.basename(name) for name in names if posixpath.dirname(name) == folder}
        extras = {name for pattern in _EXTRAS for name in fnmatch.filter(files, pattern)}
        whole = files - extras
        extras -= {name for name in extras if name.endswith(".bin") and f"{name[:-4]}.safetensors" in extras}
        form = next((pattern for marker, pattern in _FORMS if fnmatch.filter(whole, marker)), "")
        weights = {name for name in extras | set(fnmatch.filter(whole, form)) if name.endswith(_WEIGHTS)}
        chosen += sorted(posixpath.join(folder, name) for name in weights)
    return chosen


def _download(name: str, revision: str | None) -> str:
    """The folder of a repository in the hub's cache; without a network, as it was downloaded before."""
    try:
        files = huggingface_hub.list_repo_files(name, revision=revision)
    except Exception:
        try:
            return huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
        except huggingface_hub.errors.LocalEntryNotFoundError:
            pass  # the first error gives the reason
        raise
    return huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=chosen_files(files))


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
        return Path(_download(name, revision or None))
    except Exception as error:  # of the hub client, of HTTP, of the file system: a dozen unrelated types
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{spec} is no folder here, and the hub did not give it ({type(error).__name__}: {reason}); if it is a "
            f"run, train that first; else fetch it where there is a network (`hf download {name}`) and pass the folder"
        ) from error
