"""The tensors of Hugging Face folders: safetensors and pickles, one file or several with an index."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from jaxvlm.errors import UserError
from jaxvlm.weights.tensors import TensorSource, TensorSpec, listed

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

# Files in the order of preference; after these two, any single *.safetensors.
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "mm_projector.bin")
_SERVED_BYTES = 64 * 2**20  # bytes read of a pickle before it is mapped again


def open_tensors(folder: Path) -> TensorSource:
    """Opens the tensors of a Hugging Face folder without reading them.

    Looks for model.safetensors, model.safetensors.index.json, any single *.safetensors, pytorch_model.bin,
    pytorch_model.bin.index.json and mm_projector.bin, in this order. A tensor is a view of its mapped file, read-only
    and unmapped when it is dropped, so that unused tensors take no memory.

    Raises:
      UserError: no weights in the folder; absent, truncated or corrupt files; tensors of the index that are not in
        their file; a pickle with more than tensors in it; a .bin file, but no torch.
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
    """Opens the tensors of one .safetensors file, or of one .bin file of `torch.save`, without reading them.

    Raises:
      UserError: as `open_tensors` for a file.
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
        raise UserError(f'{path} is not an index (JSON with a "weight_map"): {error!r}; download it again') from error
    if absent:
        raise UserError(
            f"{len(absent)} of the {len(files)} files that {path} names are absent: {listed(absent)}; "
            "copy or download them, too"
        )
    shards = _open_all(path.parent, files)
    if lost := [f"{tensor} (in {name})" for tensor, name in index.items() if tensor not in shards[name]]:
        raise UserError(
            f"{len(lost)} tensors are not in the files that {path} names for them: {listed(lost)}; "
            "index and files are of different models or versions: download them together"
        )
    # Tensors that are not in the index are included, too: nothing is silently left out.
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
                pass  # this compares the header with the file's size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} ({path.stat().st_size:,} bytes) is truncated or corrupt ({error}); copy or download it again "
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
            return np.empty(shape, dtype)  # an empty range cannot be mapped
        return np.memmap(self._path, dtype, "r", offset=self._starts[name], shape=shape)


class _PickleFile(TensorSource):
    """One file of torch.save."""

    def __init__(self, path: Path):
        self._path = path
        with path.open("rb") as file:
            # Only zip files can be mapped; files of torch before 1.6 are read once and kept.
            self._mapped = file.read(4) == b"PK\x03\x04"
        self._tensors, self._served = self._load(), 0
        super().__init__({name: TensorSpec(x.shape, x.dtype) for name, x in self._tensors.items()})

    def where(self, name: str) -> str:
        return str(self._path)

    def is_mapped(self, name: str) -> bool:
        return True

    def __getitem__(self, name: str) -> np.ndarray:
        # Pages stay resident while a view of the mapping lives, so the file is mapped again from time to time. If two
        # threads do so at once they are only slower.
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
            raise UserError(f"{self._path} is truncated or corrupt ({reason}); copy or download it again") from error


def _from_torch(tensor: Any) -> np.ndarray:
    """A NumPy view of a tensor; dtypes that NumPy does not have go through integers of their size."""
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
