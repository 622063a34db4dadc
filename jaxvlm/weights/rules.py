"""Reversible rules of a weight conversion, and the engine that applies them in both directions."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import einops
import jax
import numpy as np

from jaxvlm.errors import UserError
from jaxvlm.progress import progress_bar
from jaxvlm.trees import from_paths, paths
from jaxvlm.weights.tensors import TensorSource, TensorSpec, as_source, listed, overflows


@dataclasses.dataclass(frozen=True)
class Rule:
    """One weight: left to right imports, right to left exports.

        Rule("layers.{i}.self_attn.q_proj.weight", "blocks/attention/q/w", "(N H) D -> D N H")

    `{i}` counts the blocks; ours are stacked over a leading axis that the pattern does not name.
    """

    hf: str
    ours: str
    pattern: str = "... -> ..."

    @property
    def stacked(self) -> bool:
        """Whether the row is one tensor for each block."""
        return "{i}" in self.hf


def prefixed(rules: Sequence[Rule], hf: str, ours: str) -> tuple[Rule, ...]:
    """The rules with `hf` before Hugging Face's names and `ours` before our paths."""
    return tuple(dataclasses.replace(rule, hf=hf + rule.hf, ours=ours + rule.ours) for rule in rules)


def import_tensors(
    rules: Sequence[Rule],
    source: Mapping[str, np.ndarray],
    abstract: Mapping[str, Any],
    sizes: Mapping[str, int],
    *,
    ignored: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Converts Hugging Face's tensors to our weights.

    A leaf of `abstract` with a sharding becomes a global `jax.Array` of its shape, dtype and sharding, for which this
    host reads only the parts that its devices hold. A leaf without becomes a NumPy array of its shape, in the dtype of
    the tensors. Leaves are made one after another: beyond the result, memory holds less than twice the largest leaf.

    Args:
      rules: a table; every weight of `abstract` has one row.
      source: name -> tensor; a `TensorSource` is read lazily and by several threads.
      abstract: the model's nested dict of values with a shape and a dtype.
      sizes: of the letters that our shapes do not show, such as the rows and columns of a patch.
      ignored: patterns of whole names in `source` that are not used, such as buffers.
      progress: whether a bar shows the bytes made.

    Returns:
      Nested dict of arrays with the tree of `abstract`.

    Raises:
      UserError: before anything is read, with every tensor that is unused, missing, of a wrong shape, or of integers
        where floats are expected.
    """
    tensors, wanted = as_source(source), paths(abstract)
    _check(rules, tensors, wanted, sizes, ignored)
    rows = {rule.ours: rule for rule in rules}
    leaves = {path: _Leaf(rows[path], leaf, tensors, sizes) for path, leaf in wanted.items()}
    total = sum(leaf.nbytes for leaf in leaves.values())
    bar = progress_bar("weights", total, "B", show=progress, scaled=True)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return from_paths({path: leaf.load(tensors, pool, bar) for path, leaf in leaves.items()})


def export_tensors(rules: Sequence[Rule], params: Mapping[str, Any], sizes: Mapping[str, int]) -> TensorSource:
    """Converts our weights to Hugging Face's tensors, lazily: the inverse of `import_tensors`.

    Args:
      rules: a table.
      params: nested dict of NumPy or `jax.Array` leaves; of a stack on a device one layer is fetched at a time.
      sizes: as for `import_tensors`.

    Raises:
      UserError: weights without a row.
    """
    flat = paths(params)
    if problems := _uncovered(rules, flat):
        raise UserError(f"weights cannot be exported, {len(problems)} problems: {listed(problems, '; ')}")
    return _Exported([rule for rule in rules if rule.ours in flat], flat, sizes)


class _Exported(TensorSource):
    """Tensors made from our weights on access."""

    def __init__(self, rules: Sequence[Rule], flat: Mapping[str, Any], sizes: Mapping[str, int]):
        self._flat, self._sizes = flat, sizes
        self._rows: dict[str, tuple[Rule, int]] = {}
        specs = {}
        for rule in rules:
            leaf = flat[rule.ours]
            _, theirs = _shapes(rule, tuple(leaf.shape), sizes)
            for i, name in enumerate(_names(rule, leaf.shape)):
                self._rows[name] = rule, i
                specs[name] = TensorSpec(theirs, np.dtype(leaf.dtype))
        super().__init__(specs)

    def __getitem__(self, name: str) -> np.ndarray:
        rule, i = self._rows[name]
        leaf = self._flat[rule.ours]
        if rule.stacked:
            # Slice on the device: a `jax.Array` caches the whole NumPy copy.
            leaf = jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False) if isinstance(leaf, jax.Array) else leaf[i]
        part = np.asarray(leaf)
        left, right = rule.pattern.split("->")
        tensor = np.empty(*self.spec(name))
        _copy(tensor, einops.rearrange(part, f"{right} -> {left}", **_known(rule, part.shape, self._sizes)))
        return tensor


def _check(
    rules: Sequence[Rule],
    source: TensorSource,
    wanted: Mapping[str, Any],
    sizes: Mapping[str, int],
    ignored: Sequence[str],
) -> None:
    """Raises one error with everything that does not fit; reads no tensor."""
    missing, shapes, dtypes, used = [], [], [], set()
    for rule in rules:
        if rule.ours not in wanted:
            continue  # its tensors, if any, are reported as unused
        leaf = wanted[rule.ours]
        shape = tuple(leaf.shape)
        theirs = _shapes(rule, shape, sizes)[1]
        for name in _names(rule, shape):
            used.add(name)
            place = f"for {rule.ours} {shape}"
            if name not in source:
                missing.append(f"{name} is missing, {place}")
                continue
            spec = source.spec(name)
            if spec.shape != theirs:
                shapes.append(f"{name} is {spec.shape}, expected {theirs} {place}{_in_file(source, name)}")
            elif _is_float(leaf.dtype) and not _is_float(spec.dtype):
                dtypes.append(f"{name} is {spec.dtype}, expected floats {place}{_in_file(source, name)}")
    unused = [
        f"{name} {source.spec(name).shape} has no place in the model{_in_file(source, name)}"
        for name in sorted(set(source) - used)
        if not any(re.fullmatch(pattern, name) for pattern in ignored)
    ]
    kinds = [kind for kind in (_uncovered(rules, wanted), missing, shapes, dtypes, unused) if kind]
    if kinds:
        problems = "; ".join(listed(kind, "; ") for kind in kinds)
        raise UserError(
            f"weights do not fit, {sum(map(len, kinds))} problems: {problems}; take weights of the recipe's model, or "
            "change config.model to theirs"
        )


def _in_file(source: TensorSource, name: str) -> str:
    return f" ({where})" if (where := source.where(name)) else ""


def _is_float(dtype: Any) -> bool:
    return jax.dtypes.issubdtype(dtype, np.floating)  # NumPy's own function does not know bfloat16


_JOB_BYTES = 32 * 2**20  # of a tensor that one thread maps and copies at a time
_TILE = 512  # rows and columns of a transposed copy's block, which must fit into a core's cache: 512 KiB of bfloat16


class _Leaf:
    """One weight: this host's part of it, made from its tensors."""

    def __init__(self, rule: Rule, leaf: Any, source: TensorSource, sizes: Mapping[str, int]):
        self.shape = tuple(leaf.shape)
        self.names = _names(rule, self.shape)
        self.stacked, self.pattern = rule.stacked, rule.pattern
        self.known = _known(rule, self.shape[1:] if rule.stacked else self.shape, sizes)
        self.sharding = getattr(leaf, "sharding", None)
        if self.sharding is None:
            self.dtype = np.result_type(*(source.spec(name).dtype for name in self.names))
            self.boxes = [tuple((0, size) for size in self.shape)]
        else:
            self.dtype = np.dtype(leaf.dtype)
            indices = self.sharding.addressable_devices_indices_map(self.shape).values()
            self.boxes = sorted({_box(index, self.shape) for index in indices})  # replicas are read once

    @property
    def nbytes(self) -> int:
        """Bytes of everything that this host makes."""
        return sum(math.prod(stop - start for start, stop in box) for box in self.boxes) * self.dtype.itemsize

    def load(self, source: TensorSource, pool: ThreadPoolExecutor, bar: Any) -> Any:
        """The weight, on its devices if it has a sharding."""
        buffers = {box: _empty(tuple(stop - start for start, stop in box), self.dtype) for box in self.boxes}
        jobs = [pool.submit(self._copy_pieces, source, *job) for job in self._jobs(source, buffers)]
        try:
            for job in as_completed(jobs):
                bar.update(job.result())
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        if self.sharding is None:
            return buffers[self.boxes[0]]
        array = jax.make_array_from_callback(
            self.shape, self.sharding, lambda index: buffers[_box(index, self.shape)], self.dtype
        )
        return jax.block_until_ready(array)  # so that buffers of only one leaf are in memory

    def _jobs(self, source: TensorSource, buffers: Mapping[_Box, np.ndarray]) -> Iterator[tuple[str, list[_Piece]]]:
        """The pieces that threads copy: `_JOB_BYTES` of a mapped tensor, the whole of another, which is made once."""
        for k, name in enumerate(self.names):
            pieces: list[_Piece] = []
            for box, buffer in buffers.items():
                if not self.stacked:
                    pieces += self._pieces(source.spec(name), box, buffer)
                elif box[0][0] <= k < box[0][1]:
                    pieces += self._pieces(source.spec(name), box[1:], buffer[k - box[0][0]])
            if source.is_mapped(name):
                yield from ((name, [piece]) for piece in pieces)
            elif pieces:
                yield name, pieces

    def _pieces(self, spec: TensorSpec, box: _Box, into: np.ndarray) -> Iterator[_Piece]:
        """One box of a tensor in pieces of at most `_JOB_BYTES`, each a run of its file."""
        index = tuple(slice(*bounds) for bounds in box)
        # Untouched memory costs nothing: this has the strides of the tensor's view.
        view = self._view(np.empty(*spec))[index]
        if view.nbytes <= _JOB_BYTES:
            yield index, into
            return
        axis = int(np.argmax(view.strides))
        first, size = index[axis].start, view.shape[axis]
        step = max(1, size * _JOB_BYTES // view.nbytes)
        for start in range(0, size, step):
            stop = min(start + step, size)
            part = (*index[:axis], slice(first + start, first + stop), *index[axis + 1 :])
            yield part, into[(*[slice(None)] * axis, slice(start, stop))]

    def _copy_pieces(self, source: TensorSource, name: str, pieces: list[_Piece]) -> int:
        view = self._view(source[name])
        for index, into in pieces:
            with np.errstate(over="ignore"):
                _copy(into, view[index])
            if into.dtype == np.float16 and overflows(view[index], into):
                raise UserError(
                    f"{name} has values beyond float16, which ends at 65,504{_in_file(source, name)}; set frozen_dtype "
                    'to "bfloat16" or "float32"'
                )
        return sum(into.nbytes for _, into in pieces)

    def _view(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor in the axes of our weight; for almost all patterns a view."""
        return einops.rearrange(tensor, self.pattern, **self.known)


_Box = tuple[tuple[int, int], ...]  # start and stop along each axis; unlike a slice it can be a key before Python 3.12
_Piece = tuple[tuple[slice, ...], np.ndarray]  # index into a tensor's view, and the target


def _box(index: Any, shape: tuple[int, ...]) -> _Box:
    return tuple(piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True))


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Like `np.empty`, but aligned so that JAX's CPU devices use it without a copy."""
    size, alignment = math.prod(shape) * dtype.itemsize, 64
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(into: np.ndarray, view: np.ndarray) -> None:
    """`into[...] = view` with a cast to its dtype; fast for a transposed `view`, and without the GIL.

    NumPy reads a transposed array with a stride of a whole row, a cache line for each element. This copies blocks to a
    small array in the source's order, and from there to the target.
    """
    if view.dtype == into.dtype:
        # As integers: the loops of bfloat16 may be slow and hold the GIL.
        into, view = _bits(into), _bits(view)
    if into.ndim > 2:
        into, view = _merged(into, view)
    fast = int(np.argmin(view.strides)) if view.ndim else 0
    last = view.ndim - 1
    if view.ndim < 2 or fast == last or view.shape[fast] == 1:
        into[...] = view
        return
    if view.ndim > 2:  # the axes that are not exchanged, one after another
        axis = next(axis for axis in range(last) if axis != fast)
        for k in range(view.shape[axis]):
            at: tuple[Any, ...] = (*[slice(None)] * axis, k)
            _copy(into[at], view[at])
        return
    rows, columns = (min(_TILE, size) for size in view.shape)
    # Padding: rows that are a power of two apart would share cache lines.
    block = np.empty((columns, rows + 32), into.dtype)
    for i in range(0, view.shape[0], _TILE):
        for j in range(0, view.shape[1], _TILE):
            piece = view[i : i + _TILE, j : j + _TILE]
            rows, columns = piece.shape
            block[:columns, :rows] = piece.T
            _bits(into)[i : i + rows, j : j + columns] = _bits(block)[:columns, :rows].T


def _bits(array: np.ndarray) -> np.ndarray:
    """A view as unsigned integers."""
    return array.view(f"u{array.itemsize}")


def _merged(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays with neighbouring axes merged where that is a view of both."""
    shape = [a.shape[0]]
    for axis in range(1, a.ndim):
        if all(x.strides[axis - 1] == x.shape[axis] * x.strides[axis] for x in (a, b)):
            shape[-1] *= a.shape[axis]
        else:
            shape.append(a.shape[axis])
    return a.reshape(shape), b.reshape(shape)


def _names(rule: Rule, shape: tuple[int, ...]) -> list[str]:
    return [rule.hf.replace("{i}", str(i)) for i in range(shape[0])] if rule.stacked else [rule.hf]


def _uncovered(rules: Sequence[Rule], flat: Mapping[str, Any]) -> list[str]:
    covered = {rule.ours for rule in rules}
    return [f"{path} {tuple(x.shape)} has no rule in the table" for path, x in flat.items() if path not in covered]


def _groups(side: str) -> list[list[str]]:
    """ "(N H) D" -> [["N", "H"], ["D"]]."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", side)]


def _known(rule: Rule, ours: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the letters of a row's pattern: those that are alone on our side, and those given."""
    if "..." in rule.pattern:
        return {}
    left, right = (_groups(side) for side in rule.pattern.split("->"))
    known = {group[0]: size for group, size in zip(right, ours, strict=True) if len(group) == 1}
    letters = {letter for group in left for letter in group}
    return known | {letter: size for letter, size in sizes.items() if letter in letters}


def _shapes(rule: Rule, shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of one block's part of our weight, and of its tensor."""
    ours = shape[1:] if rule.stacked else shape
    if "..." in rule.pattern:
        return ours, ours
    known = _known(rule, ours, sizes)
    theirs = [int(np.prod([known[letter] for letter in group])) for group in _groups(rule.pattern.split("->")[0])]
    return ours, tuple(theirs)
