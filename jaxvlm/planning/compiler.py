"""The TPU compiler, which needs no TPU: a step's memory and program, cached."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import NamedSharding
from tqdm import tqdm

from jaxvlm.errors import UserError, unknown_option
from jaxvlm.files import replace_bytes
from jaxvlm.planning.program import Step
from jaxvlm.training.step import compile_train_step

_FORMAT = 2  # version of cached results


TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask the cloud what this machine is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at once
    "TPU_WORKER_HOSTNAMES": "localhost",  # this and the next: without them the compiler warns
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def use_tpu_compiler() -> None:
    """Lets this process compile for TPUs without one; call it before JAX has started a backend."""
    for name, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip; only `needed` and `limit` are known of a program that does not fit."""

    needed: float  # by the program and its arguments
    limit: float
    trained: float
    frozen: float
    optimizer: float
    batch: float
    padding: float | None = None  # added by the compiler's layout of these arguments
    temporaries: float | None = None
    code: float | None = None
    reference: float = 0.0  # of the objective
    is_exact: bool = True  # False: the compiler did not report what it allocated, and `temporaries` are a bound

    @property
    def fits(self) -> bool:
        """Whether the chip has that much."""
        return self.needed <= self.limit


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler reports of a step."""

    memory: Memory
    text: str | None  # the optimised program; None if it does not fit, or cannot be printed
    seconds: float  # of compilation
    cached: bool
    largest: tuple[str, ...] = ()  # arrays of a program that does not fit


def compile_step(
    step: Step,
    *,
    cache: Path | None = None,
    compiler: Callable[[Any, Path], Any] | None = None,
) -> Compiled:
    """Compiles a step, or reads the cached result of the same program.

    Args:
      cache: folder of earlier results; None: none are read or written.
      compiler: makes the executable of the lowered program; None: `compile_lowered`.

    Raises:
      UserError: the compiler does not know an option, or runs out of another memory than the main one.
    """
    layout = step.layout
    # Not within `jax.set_mesh`, as the train loop does: the kernels' own constants would be put on devices that are not
    # attached. All shardings of the step name their mesh, so the program is the same.
    lowered = compile_train_step(layout, step.stage).lower(layout.state, step.batch)
    file = None if cache is None else cache / f"{_fingerprint(lowered, step)}.json.gz"
    found = _read(file)
    if found is None:
        began = time.perf_counter()
        with _progress(f"compiling {step.stage_name} for {step.slice.name}"):
            found = _compile(lowered, compiler or compile_lowered) | {"seconds": time.perf_counter() - began}
        _write(file, found)
        cached = False
    else:
        cached = True
    return Compiled(_memory(step, found), found["text"], found["seconds"], cached, tuple(found.get("largest", ())))


def compile_lowered(lowered: Any, dump: Path) -> Any:
    """The executable of a lowered program; the compiler's own reports go to the folder `dump`."""
    with _without_persistent_cache():
        return lowered.compile({"xla_dump_to": str(dump)})


@contextlib.contextmanager
def _without_persistent_cache() -> Iterator[None]:
    """Turns jax's persistent compilation cache off.

    An executable for a slice that is not attached cannot be read back, and a cached one would write no dump.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # jax decides once whether it uses the cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def _fingerprint(lowered: Any, step: Step) -> str:
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")]
    places = [step.slice.topology, [int(d.id) for d in step.layout.mesh.devices.flat]]
    options = sorted(step.layout.compiler_options.items()), os.environ.get("LIBTPU_INIT_ARGS", "")
    settings = json.dumps([_FORMAT, versions, places, options])
    return hashlib.sha256((settings + lowered.as_text()).encode()).hexdigest()[:32]


def _compile(lowered: Any, compiler: Callable[[Any, Path], Any]) -> dict[str, Any]:
    """The compiler's report, JSON-ready."""
    try:
        with tempfile.TemporaryDirectory() as dump:
            compiled = compiler(lowered, Path(dump))
            allocated = read_allocated(Path(dump))
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            found = parse_out_of_memory(str(error))
            if found["needed"] is None:
                raise UserError(
                    "the TPU compiler ran out of another memory than the chip's main memory, such as the fast memory "
                    f"of one operation: {' '.join(str(error).split())[:400]}; try another config.model.remat, or "
                    "leave out the last of the stage's compiler_options"
                ) from error
            return found | {"text": None}
        if explained := unknown_option(error):
            raise explained from error
        raise
    stats = compiled.memory_analysis()
    result: dict[str, Any] = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
        "is_exact": allocated is not None,
    }
    if allocated is not None:
        result["temporaries"] = allocated - result["arguments"]
    try:
        result["text"] = compiled.as_text()
    except Exception:  # libtpu cannot print some programs of v5p ("async-update instruction should have 1 operands")
        result["text"] = None
    return result


def read_allocated(dump: Path) -> float | None:
    """Bytes of a chip's main memory that the program's arguments and temporaries take, as the compiler reports them.

    `memory_analysis().temp_size_in_bytes` is no substitute: for these steps libtpu 0.0.42 gives up to 60 % more than it
    allocates, and takes programs of which arguments and that number are together far over the chip's memory.
    """
    reports = sorted(dump.glob("*memory-usage-report.txt"))  # several where the compiler began again to save memory
    if not reports:
        return None
    match = re.search(r"Memory Space: default .*\nTotal bytes: (\d+)", reports[-1].read_text())
    return float(match[1]) if match else None


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_out_of_memory(message: str) -> dict[str, Any]:
    """Parses a RESOURCE_EXHAUSTED of the TPU compiler: bytes needed, bytes available, the largest arrays.

    Used 15.80G of 15.75G hbm. Exceeded hbm capacity by 49.12M. ... program 11.02G  arguments 4.77G
    ... the total memory required for HLO temporaries (512.00G) exceeds available HBM (15.75G).
    """

    def bytes_of(pattern: str) -> float | None:
        match = re.search(pattern, message)
        return float(match[1]) * _UNITS[match[2]] if match else None

    number = r"([\d.]+)([KMGT]?)"
    over = bytes_of(rf"Exceeded hbm capacity by {number}")
    limit = bytes_of(rf"Used [\d.]+[KMGT]? of {number}") or bytes_of(rf"exceeds available HBM \({number}")
    used = bytes_of(rf"Used {number} of") or bytes_of(rf"required for [\w ]+ \({number}")
    if over is not None and limit is not None:
        used = limit + over
    entries = re.findall(r"\n\s+\d+\. Size: (\S+)\n(.*?)(?:=====|\Z)", message, re.DOTALL)
    largest = []
    for size, entry in entries:
        shape, kind = (re.search(rf"{key}: (.*)", entry) for key in ("Shape", "Allocation type"))
        operator = re.search(r'op_name="([^"]*)"', entry)
        if kind and "temp" in kind[1]:
            where = operator[1].split("/", 1)[-1] if operator else "-"
            largest.append(f"{size}iB  {shape[1].split('{')[0] if shape else '?'}  {where}")
    return {
        "needed": used,
        "limit": limit,
        "program": bytes_of(rf"\n\s+program\s+{number}"),
        "arguments": bytes_of(rf"\n\s+arguments\s+{number}"),
        "largest": largest[:5],
    }


def bytes_per_chip(tree: Any) -> int:
    """Bytes of a tree of abstract values with shardings on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf.sharding, NamedSharding)
    )


def _memory(step: Step, found: Mapping[str, Any]) -> Memory:
    state = step.layout.state
    parts: dict[str, Any] = {
        name: bytes_per_chip(getattr(state, name)) for name in ("trained", "frozen", "optimizer", "reference")
    }
    parts["batch"] = bytes_per_chip(step.batch)
    limit = found.get("limit") or step.slice.chip.hbm_bytes
    known = sum(parts.values())
    padding = None if found.get("arguments") is None else max(0.0, found["arguments"] - known)
    if "needed" in found:
        program = found.get("program")
        return Memory(found["needed"] or float("nan"), limit, **parts, padding=padding, temporaries=program)
    needed = found["arguments"] + found["temporaries"] + found["code"]
    return Memory(
        needed,
        limit,
        **parts,
        padding=padding,
        temporaries=found["temporaries"],
        code=found["code"],
        is_exact=found["is_exact"],
    )


def _read(file: Path | None) -> dict[str, Any] | None:
    if file is None or not file.is_file():
        return None
    try:
        return json.loads(gzip.decompress(file.read_bytes()))
    except (OSError, ValueError, EOFError):  # truncated or invalid: compile again
        return None


def _write(file: Path | None, found: dict[str, Any]) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(file, gzip.compress(json.dumps(found).encode(), 6))


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Shows progress and elapsed time on standard error: each second on a terminal, else each minute."""
    over, pause = threading.Event(), 1 if sys.stderr.isatty() else 60
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False) as bar:

        def show() -> None:
            while not over.wait(pause):
                bar.refresh()

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
