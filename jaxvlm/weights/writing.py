"""Writes shards of tensors into a new folder, atomically."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxvlm.errors import UserError
from jaxvlm.weights.tensors import as_source


def parse_size(text: str) -> int:
    """ "5GB" -> 5_000_000_000 bytes; KB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024.

    Raises:
      UserError: any other text, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", text.strip(), re.IGNORECASE)
    power = 0 if match is None or match[2] is None else 1 + "kmgt".index(match[2].lower())
    size = 0 if match is None else int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size == 0:
        raise UserError(f'"{text}" is not a size; write a number of bytes above 0 such as 5GB, 500MB or 2GiB')
    return size


def write_pickle(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors as a file of torch, which the original LLaVA and llama.cpp read.

    Raises:
      UserError: torch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"torch is needed to write {path.name}: pip install torch") from error

    def to_torch(array: np.ndarray) -> torch.Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: to_torch(np.array(tensors[name], order="C")) for name in tensors}, path)


def write_tensors(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    shard_bytes: int,
    *,
    metadata: Mapping[str, str] = types.MappingProxyType({"format": "pt"}),
) -> None:
    """Writes tensors as transformers does, one shard in memory at a time.

    Writes model.safetensors if all of them fit into `shard_bytes`, else model-00001-of-0000N.safetensors, ... and
    model.safetensors.index.json. A tensor larger than `shard_bytes` gets a shard of its own.

    Args:
      folder: an existing folder, such as from `new_folder`.
      tensors: written in their order; those of a `TensorSource` are made with their shard.
      shard_bytes: maximum tensor bytes of a file.
      metadata: of each file; transformers requires the format.

    Raises:
      UserError: the disk is too small.
    """
    source = as_source(tensors)
    shards: list[list[str]] = [[]]
    size = 0
    for name in source:
        size += source.spec(name).nbytes
        if shards[-1] and size > shard_bytes:
            shards.append([])
            size = source.spec(name).nbytes
        shards[-1].append(name)
    total = sum(source.spec(name).nbytes for name in source)
    _check_space(folder, total)
    files = [f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        _save({name: np.asarray(source[name], order="C") for name in names}, folder / file, dict(metadata), total)
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _save(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str], total: int) -> None:
    try:
        safetensors.numpy.save_file(tensors, path, metadata)
    except (safetensors.SafetensorError, OSError) as error:
        if _is_full(error):
            raise _full(path.parent, total) from error
        raise


def _check_space(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder, needed)


def _full(folder: Path, needed: int) -> UserError:
    free = shutil.disk_usage(folder).free
    return UserError(
        f"no space left for {folder}: the weights need {needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free; "
        "free some or choose a folder on another disk"
    )


def _is_full(error: Exception) -> bool:
    # safetensors (Rust) has no errno, only its text.
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary folder next to `path` that takes its name when the block ends, and is removed on an error.

    Args:
      path: the folder to make, with its parents.
      overwrite: whether an existing folder may be replaced, after the new one is complete.

    Raises:
      UserError: `path` is a file, or a folder that is not empty and not to be overwritten; no folder can be made
        there; the disk is full.
    """
    path = Path(os.path.realpath(path))  # next to the folder itself, not next to a link to it
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; choose another folder")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty; pass --overwrite to replace it, or choose another folder")
    new, old = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    remove = functools.partial(shutil.rmtree, ignore_errors=True)
    remove(new)  # left by a killed process with this id
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make a folder in {path.parent}: {error.strerror}; choose another") from error
    try:
        yield new
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        remove(old)
    except BaseException as error:
        remove(new)
        if isinstance(error, OSError) and _is_full(error):
            raise UserError(f"no space left for {path}; free some or choose a folder on another disk") from error
        raise
