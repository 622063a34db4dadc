"""Named tensors that are read on access."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxvlm import errors
from jaxvlm.errors import UserError

LISTED = 20  # items of a list in a message; the others are counted


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Mapping[str, np.ndarray]):
    """Named tensors; only `source[name]` reads, and makes the array again at each access."""

    def __init__(self, specs: Mapping[str, TensorSpec]):
        self._specs = dict(specs)

    def spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor."""
        return self._specs[name]

    def where(self, name: str) -> str:
        """The file of a tensor, for messages; "" if it is in none."""
        return ""

    def is_mapped(self, name: str) -> bool:
        """Whether an access is free, and only touched pages take memory."""
        return False

    @property
    def dtype(self) -> np.dtype:
        """The dtype of most of the bytes."""
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
    """Tensors computed from those of another source, with the same names; unchanged ones are passed on."""

    def __init__(self, source: TensorSource, specs: Mapping[str, TensorSpec]):
        super().__init__(specs)
        self._source = source

    def where(self, name: str) -> str:
        """The file of a tensor."""
        return self._source.where(name)

    def is_mapped(self, name: str) -> bool:
        """As in the other source, if the tensor is passed on."""
        return self.spec(name) == self._source.spec(name) and self._source.is_mapped(name)


class RenamedSource(TensorSource):
    """Another source under the names that `rename` returns; None leaves a tensor out.

    Raises:
      UserError: two tensors get one name.
    """

    def __init__(self, source: TensorSource, rename: Callable[[str], str | None]):
        renamed = [(new, old) for old in source if (new := rename(old)) is not None]
        self._source, self._old = source, dict(renamed)
        if len(renamed) != len(self._old):
            twice = [f"{old} and {self._old[new]} ({new})" for new, old in renamed if self._old[new] != old]
            raise UserError(f"tensors with the same meaning: {listed(twice)}; keep one of each in the folder")
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
        self._overflowed: dict[str, float] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._source[name]
        with np.errstate(over="ignore"):
            cast = array.astype(self.spec(name).dtype, copy=False)
        if overflows(array, cast):
            self._overflowed[name] = float(np.abs(array.astype(np.float32)).max())
        return cast

    def check(self) -> None:
        """Raises `UserError` with all tensors read so far of which a finite value became infinite."""
        if self._overflowed:
            dtype = next(iter(self._specs.values())).dtype
            given = [f"{name} (up to {largest:.3g})" for name, largest in self._overflowed.items()]
            raise UserError(
                f"{len(given)} tensors have values beyond {dtype}, which ends at {ml_dtypes.finfo(dtype).max:.5g}: "
                f"{listed(given)}; take bfloat16 or float32"
            )


def overflows(array: np.ndarray, cast: np.ndarray) -> bool:
    """Whether a finite value of `array` is infinite in `cast`, its values in another dtype."""
    if cast.dtype == array.dtype or not np.isinf(cast).any():
        return False
    return bool((np.isinf(cast) & np.isfinite(array)).any())


def as_source(tensors: Mapping[str, np.ndarray]) -> TensorSource:
    """`tensors` itself if it is a source, else a source of its arrays."""
    return tensors if isinstance(tensors, TensorSource) else DictSource(tensors)


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first `LISTED` names of tensors, and how many more there are."""
    return errors.listed(items, separator, LISTED)
