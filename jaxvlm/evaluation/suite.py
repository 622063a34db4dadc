"""Runs benchmarks with an engine: asks, saves each answer as it comes, scores, and writes the result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxvlm import processes
from jaxvlm.batch import Array
from jaxvlm.evaluation.answer_log import AnswerLog, Reply, open_log
from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.result import Result, score_task
from jaxvlm.evaluation.saving import save, stem
from jaxvlm.evaluation.task import GENERATE, MEAN, Task, by_image
from jaxvlm.inference.engine import Engine
from jaxvlm.progress import progress_bar
from jaxvlm.trees import paths

_CHUNK = 64  # batches whose prompts are rendered at once


@dataclasses.dataclass(frozen=True)
class Asking:
    """How questions are asked, whatever the benchmark."""

    batch_size: int
    max_new_tokens: int | None = None  # None: the benchmark's
    resume: bool = False
    progress: bool = False

    def limit(self, task: Task) -> int:
        """The length limit of an answer."""
        return self.max_new_tokens or task.max_new_tokens


def run_task(engine: Engine, task: Task, model: Mapping[str, Any], out: Path, label: str, asking: Asking) -> Result:
    """Asks a task and writes its result; on several hosts all make the same call, and the first writes.

    Answers are appended to OUT/STEM.answers.jsonl as they come; `asking.resume` continues such a file.

    Args:
      model: what the engine has, ready for JSON; "weights" identifies them.
      out, label: as those of `save`.

    Raises:
      UserError: as `Engine.answer_each` and `open_log`.
    """
    generation = _generation(task, asking)
    log = _open(out / f"{stem(task, label)}.answers.jsonl", engine, task, model, generation, resume=asking.resume)
    with contextlib.closing(log):
        left = [item for item in by_image(task.items) if item.id not in log.replies]
        shown = asking.progress and processes.index() == 0
        began = time.perf_counter()
        done = len(task.items) - len(left)
        with progress_bar(task.benchmark.name, len(task.items), "question", initial=done, show=shown) as bar:
            for reply in ask(engine, task, left, asking):
                log.append(reply)
                bar.update()
        seconds = time.perf_counter() - began
    result = score_task(
        task, log.replies, model=model, generation=generation, answered=len(left), seconds=seconds if left else 0.0
    )
    if processes.index() == 0:
        save(result, out, label)
    return result


def ask(engine: Engine, task: Task, items: Sequence[Item], asking: Asking) -> Iterator[Reply]:
    """Yields the answers to items as they come, in no order.

    Raises:
      UserError: as `Engine.answer_each`.
    """
    size = asking.batch_size * _CHUNK
    for first in range(0, len(items), size):
        chunk = items[first : first + size]
        if task.scoring == GENERATE:
            records = [task.record(item) for item in chunk]
            for number, answer in engine.answer_each(
                records, max_new_tokens=asking.limit(task), batch_size=asking.batch_size
            ):
                yield Reply(chunk[number].id, answer.text, answer.tokens, answer.truncated)
        else:
            yield from _rank(engine, task, chunk, asking)


def _rank(engine: Engine, task: Task, items: Sequence[Item], asking: Asking) -> Iterator[Reply]:
    """Yields for each item the continuation with the highest log probability."""
    options = [task.continuations(item) for item in items]
    records = [task.record(item, text) for item, texts in zip(items, options, strict=True) for text in texts]
    found = iter(engine.loglikelihoods(records, batch_size=asking.batch_size))
    for item, texts in zip(items, options, strict=True):
        likelihoods = [next(found) for _ in texts]
        per = [max(1, one.tokens) if task.scoring == MEAN else 1 for one in likelihoods]
        scores = [one.logprob / count for one, count in zip(likelihoods, per, strict=True)]
        best = int(np.argmax(scores))
        yield Reply(item.id, texts[best], likelihoods[best].tokens, False, tuple(scores))


def main_number(engine: Engine, task: Task, batch_size: int) -> float:
    """The main number of a task, without a file: for evaluations while a model is trained."""
    replies = {reply.id: reply for reply in ask(engine, task, by_image(task.items), Asking(batch_size))}
    values = [task.benchmark.parse(item, replies[item.id].text, task.dialect) for item in task.items]
    return next(iter(task.benchmark.score(task.items, values, task.dialect).numbers.values()), float("nan"))


def weights_fingerprint(engine: Engine) -> str:
    """A hash of all weights: equal on any number of devices, and different after any training step.

    It is made of a sum of the bits of each array, so it identifies weights but protects against nobody.
    """
    leaves = paths(engine.params)
    sums = _bit_sums(tuple(leaves.values()), NamedSharding(engine.mesh, PartitionSpec()))
    lines = [
        f"{path} {leaf.shape} {leaf.dtype} {int(found)}"
        for (path, leaf), found in zip(leaves.items(), sums, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.partial(jax.jit, static_argnums=1)
def _bit_sums(leaves: tuple[Array, ...], whole: NamedSharding) -> tuple[Array, ...]:
    """uint32 for each array: the sum of its elements' bits, modulo 2**32, so that no order of summation matters."""

    def bit_sum(x: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return jax.lax.with_sharding_constraint(jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32), whole)

    return tuple(bit_sum(x) for x in leaves)


def _generation(task: Task, asking: Asking) -> dict[str, Any]:
    if task.scoring != GENERATE:
        return {"batch_size": asking.batch_size}
    return {"max_new_tokens": asking.limit(task), "temperature": 0.0, "batch_size": asking.batch_size}


def _open(
    path: Path,
    engine: Engine,
    task: Task,
    model: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    resume: bool,
) -> AnswerLog:
    """The file of answers, opened by the first host and read by the others after it."""
    data = engine.data
    settings = {
        "benchmark": task.benchmark.name,
        "split": task.split,
        "dialect": task.dialect,
        "scoring": task.scoring,
        "questions": task.fingerprint,
        "weights": model["weights"],
        "compute_dtype": engine.model.config.compute_dtype,
        "date": engine.date,
        **{name: getattr(data, name) for name in ("template", "system", "control_tokens", "stop_tokens", "tokens")},
        "media": dataclasses.asdict(data.media),
        "max_new_tokens": generation.get("max_new_tokens"),
    }
    count = len(task.items)
    log: AnswerLog | None = None

    def first() -> int:
        nonlocal log
        log = open_log(path, settings, count, resume=resume)
        return len(log.replies)

    processes.from_first(first)
    return log or open_log(path, settings, count, resume=True, writes=False)
