"""Tensors in Hugging Face folders: named sources that read on access, and the writing of shards into a new folder."""

from __future__ import annotations

import abc
import contextlib
import errno
import functools
import json
import math
import os
import pickle
import re
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxvlm.errors import UserError

LISTED = 20  # items of a list in a message; the rest is counted

# Source of the format: https://huggingface.co/docs/safetensors, "Format".
_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

# Files looked for, the first that exists is taken; between the second and the third comes any single *.safetensors.
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "mm_projector.bin")
_SERVED_BYTES = 64 * 2**20  # read of a pickle before it is mapped anew


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Mapping[str, np.ndarray]):
    """Named tensors; `source[name]` makes the array anew at each access, everything else reads nothing."""

    def __init__(self, specs: Mapping[str, TensorSpec]):
        self._specs = dict(specs)

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor."""
        return self._specs[name]

    def where(self, name: str) -> str:
        """The file of a tensor, for messages; "" if it is in none."""
        return ""

    def is_mapped(self, name: str) -> bool:
        """Whether an access costs nothing, and memory only what is then looked at."""
        return False

    @property
    def dtype(self) -> np.dtype:
        """That of most of the bytes."""
        sizes: dict[np.dtype, int] = {}
        for spec in self._specs.values():
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
        return max(sizes, key=sizes.__getitem__)

    @abc.abstractmethod
    def __getitem__(self, name: str) -> np.ndarray: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs


class DictSource(TensorSource):
    """Arrays in memory."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        super().__init__({name: TensorSpec(tuple(x.shape), x.dtype) for name, x in tensors.items()})
        self._tensors = tensors

    def is_mapped(self, name: str) -> bool:
        """Always."""
        return True

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]


class DerivedSource(TensorSource):
    """Tensors that are made of those of another source, under the same names; such as need no work are passed on."""

    def __init__(self, source: TensorSource, specs: Mapping[str, TensorSpec]):
        super().__init__(specs)
        self._source = source

    def where(self, name: str) -> str:
        """The file of a tensor."""
        return self._source.where(name)

    def is_mapped(self, name: str) -> bool:
        """As in the other source, if it is passed on."""
        return self.spec(name) == self._source.spec(name) and self._source.is_mapped(name)


class RenamedSource(TensorSource):
    """Another source under names that `rename` gives; those for which it gives None are left out.

    Raises:
      UserError: two tensors get one name.
    """

    def __init__(self, source: TensorSource, rename: Callable[[str], str | None]):
        renamed = [(new, old) for old in source if (new := rename(old)) is not None]
        self._source, self._old = source, dict(renamed)
        if len(renamed) != len(self._old):
            twice = [f"{old} and {self._old[new]} ({new})" for new, old in renamed if self._old[new] != old]
            raise UserError(f"tensors of one meaning: {listed(twice)}; keep one of each in the folder")
        super().__init__({new: source.spec(old) for new, old in renamed})

    def where(self, name: str) -> str:
        """The file of a tensor."""
        return self._source.where(self._old[name])

    def is_mapped(self, name: str) -> bool:
        """As in the other source."""
        return self._source.is_mapped(self._old[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[self._old[name]]


class CastSource(DerivedSource):
    """Another source in one dtype."""

    def __init__(self, source: TensorSource, dtype: np.dtype):
        super().__init__(source, {name: TensorSpec(source.spec(name).shape, dtype) for name in source})

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[name].astype(self.spec(name).dtype, copy=False)


def as_source(tensors: Mapping[str, np.ndarray]) -> TensorSource:
    """`tensors` itself if it is a source, else a source of the arrays in it."""
    return tensors if isinstance(tensors, TensorSource) else DictSource(tensors)


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first `LISTED` of them and how many more there are."""
    more = f"{separator}and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return separator.join(items[:LISTED]) + more


def open_tensors(folder: Path) -> TensorSource:
    """The tensors of a Hugging Face folder, none of them read yet.

    Looks for model.safetensors, model.safetensors.index.json, any single *.safetensors, pytorch_model.bin,
    pytorch_model.bin.index.json and mm_projector.bin, in this order. A tensor is a view of its mapped file, read-only
    and unmapped when it is dropped, so that what is not used takes no memory.

    Raises:
      UserError: no weights in the folder; files that are absent, cut off or corrupt; tensors that the index promises
        and their file does not have; a pickle with more than tensors in it; a .bin file, but no torch.
    """
    found = {name for name in (*_SAFETENSORS, *_PICKLES) if (folder / name).is_file()}
    single = sorted(path.name for path in folder.glob("*.safetensors"))
    if name := next((name for name in _SAFETENSORS if name in found), single[0] if len(single) == 1 else ""):
        return _open(folder / name)
    if name := next((name for name in _PICKLES if name in found), ""):
        return _open(folder / name)
    problem = f"holds {listed(single)}, but no index that says which belong together" if single else "has no weights"
    if not folder.is_dir():
        problem = "is no folder"
    looked = ", ".join((*_SAFETENSORS, "a single *.safetensors", *_PICKLES))
    raise UserError(f"{folder} {problem}; looked for {looked}; give the folder of a downloaded model")


def open_file(path: Path) -> TensorSource:
    """The tensors of one .safetensors file, or of one .bin file of `torch.save`, none of them read yet.

    Raises:
      UserError: as `open_tensors` of a file.
    """
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _PickleFile(path)


def _open(path: Path) -> TensorSource:
    """One file, or all that an index names."""
    if path.suffix != ".json":
        return open_file(path)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(index.values()))
        absent = [name for name in files if not (path.parent / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is no index (JSON with a "weight_map"): {error!r}; download it again') from error
    if absent:
        raise UserError(
            f"{len(absent)} of the {len(files)} files that {path} names are absent: {listed(absent)}; "
            "copy or download them, too"
        )
    shards = _open_all(path.parent, files)
    if lost := [f"{tensor} (in {name})" for tensor, name in index.items() if tensor not in shards[name]]:
        raise UserError(
            f"{len(lost)} tensors are not in the file in which {path} says they are: {listed(lost)}; "
            "index and files are of different models or versions: download them together"
        )
    # What a file holds beyond the index comes, too: nothing is left out in silence.
    home = {tensor: name for name, shard in shards.items() for tensor in shard} | index
    return _Shards({tensor: shards[name] for tensor, name in home.items()})


def _open_all(folder: Path, files: Sequence[str]) -> dict[str, TensorSource]:
    opened, problems = {}, []
    for name in files:
        try:
            opened[name] = open_file(folder / name)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return opened


class _Shards(TensorSource):
    """Tensors of several files."""

    def __init__(self, homes: Mapping[str, TensorSource]):
        super().__init__({name: source.spec(name) for name, source in homes.items()})
        self._homes = dict(homes)

    def where(self, name: str) -> str:
        return self._homes[name].where(name)

    def is_mapped(self, name: str) -> bool:
        return self._homes[name].is_mapped(name)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._homes[name][name]


class _SafetensorsFile(TensorSource):
    """One .safetensors file: 8 bytes with the length of the header, the header in JSON, the tensors."""

    def __init__(self, path: Path):
        try:
            with safetensors.safe_open(path, framework="numpy"):
                pass  # it compares the header with the file's size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} ({path.stat().st_size:,} bytes) is cut off or corrupt ({error}); copy or download it again "
                "(a few hundred bytes are a Git LFS pointer: run `git lfs pull`)"
            ) from error
        header.pop("__metadata__", None)
        if unknown := [f"{name} ({x['dtype']})" for name, x in header.items() if x["dtype"] not in _SAFETENSORS_DTYPES]:
            raise UserError(
                f"{path} has dtypes that NumPy cannot hold: {listed(unknown)}; known are "
                f"{', '.join(_SAFETENSORS_DTYPES)}; take the checkpoint that is not quantised"
            )
        super().__init__(
            {name: TensorSpec(tuple(x["shape"]), _SAFETENSORS_DTYPES[x["dtype"]]) for name, x in header.items()}
        )
        self._path = path
        self._starts = {name: 8 + length + x["data_offsets"][0] for name, x in header.items()}

    def where(self, name: str) -> str:
        return str(self._path)

    def is_mapped(self, name: str) -> bool:
        return True

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self._specs[name]
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)  # nothing cannot be mapped
        return np.memmap(self._path, dtype, "r", offset=self._starts[name], shape=shape)


class _PickleFile(TensorSource):
    """One file of torch.save."""

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            # Only zip files can be mapped; what torch wrote before 1.6 is read once and kept.
            self._mapped = file.read(4) == b"PK\x03\x04"
        self._tensors, self._served = self._load(), 0
        super().__init__({name: TensorSpec(x.shape, x.dtype) for name, x in self._tensors.items()})

    def where(self, name: str) -> str:
        return str(self._path)

    def is_mapped(self, name: str) -> bool:
        return True

    def __getitem__(self, name: str) -> np.ndarray:
        # What was read stays in memory as long as anything of the mapping lives: now and then it is made anew. Two
        # threads that do so at once are only slower.
        if self._mapped and self._served > _SERVED_BYTES:
            self._tensors, self._served = self._load(), 0
        self._served += self._specs[name].nbytes
        return self._tensors[name]

    def _load(self) -> dict[str, np.ndarray]:
        loaded = self._unpickle()
        if not isinstance(loaded, dict) or any(not hasattr(x, "untyped_storage") for x in loaded.values()):
            kinds = {type(x).__name__ for x in loaded.values()} if isinstance(loaded, dict) else {type(loaded).__name__}
            raise UserError(
                f"{self._path} holds {', '.join(sorted(kinds))} where a dict of tensors is expected; save the model's "
                "state_dict alone"
            )
        return {name: _from_torch(x) for name, x in loaded.items()}

    def _unpickle(self) -> Any:
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"{self._path} is a pickle, which needs PyTorch: `pip install torch` "
                "(the CPU build is enough), or convert it to safetensors elsewhere"
            ) from error
        try:
            return torch.load(self._path, map_location="cpu", mmap=self._mapped, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self._path} is refused: only tensors are loaded from a pickle, since anything else can run code, "
                f"and this one holds more or is corrupt ({str(error).splitlines()[0]}); take the model's safetensors, "
                "or load it where you trust it and save its state_dict alone"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise UserError(f"{self._path} is cut off or corrupt ({reason}); copy or download it again") from error


def _from_torch(tensor: Any) -> np.ndarray:
    """A view of a tensor; those dtypes that NumPy does not have come through integers of their size."""
    import torch

    dtypes = {
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
    }
    tensor = tensor.detach()
    if tensor.dtype not in dtypes:
        return tensor.numpy()
    bits, dtype = dtypes[tensor.dtype]
    return tensor.view(bits).numpy().view(dtype)


def parse_size(text: str) -> int:
    """ "5GB" -> 5_000_000_000 bytes; KB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024.

    Raises:
      UserError: anything else, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", text.strip(), re.IGNORECASE)
    power = 0 if match is None or match[2] is None else 1 + "kmgt".index(match[2].lower())
    size = 0 if match is None else int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size == 0:
        raise UserError(f'"{text}" is no size; write a number of bytes above 0 such as 5GB, 500MB or 2GiB')
    return size


def write_tensors(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    shard_bytes: int,
    metadata: Mapping[str, str] = types.MappingProxyType({"format": "pt"}),
) -> None:
    """Writes tensors as transformers does, one shard in memory at a time.

    Writes model.safetensors if all of them fit into `shard_bytes`, else model-00001-of-0000N.safetensors, ... and
    model.safetensors.index.json. A tensor larger than `shard_bytes` gets a shard of its own.

    Args:
      folder: exists; `new_folder` makes one.
      tensors: written in their order; those of a `TensorSource` are made when their shard is.
      shard_bytes: the most tensor bytes in a file.
      metadata: of each file; transformers wants the format.

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
    # safetensors is in Rust and has no errno, only its text.
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `path` which takes its name when the block ends; after an error nothing is left of it.

    Args:
      path: the folder to make, and those above it if they are missing.
      overwrite: whether an existing folder may be replaced, which happens after the new one is whole.

    Raises:
      UserError: `path` is a file, or a folder with something in it and not to be overwritten; no folder can be made
        there; the disk is full.
    """
    path = Path(os.path.realpath(path))  # beside the folder itself, not beside a link to it
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; choose another folder")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} is not empty; pass --overwrite to replace it, or choose another folder")
    new, old = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    remove = functools.partial(shutil.rmtree, ignore_errors=True)
    remove(new)  # of a process that was killed and had this number
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
