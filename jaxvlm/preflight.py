"""Checks a whole recipe before its first stage: builds and opens what each stage needs, and reads no records.

So a mistake in the last stage costs seconds, not the training of the stages before it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import Mesh

from jaxvlm.config import Config, EvaluationConfig, StageConfig
from jaxvlm.data.rows.pipeline import check_settings, open_samples
from jaxvlm.data.rows.samples import Samples
from jaxvlm.data.sources.load import load_source
from jaxvlm.data.sources.mix import Mix, load_mix
from jaxvlm.errors import UserError, listed
from jaxvlm.evaluation.task import Task, load_tasks
from jaxvlm.families.build import stage_model
from jaxvlm.families.registry import media_layout
from jaxvlm.media import MediaLayout
from jaxvlm.models.vlm import Model
from jaxvlm.objectives.registry import find_objective
from jaxvlm.sharding import Rules, batch_devices, make_mesh, own_rows
from jaxvlm.stage_checks import check_batch_size, check_heldout, check_trains
from jaxvlm.training.state import state_layout

T = TypeVar("T")

_STEPS = 1000  # of a schedule, whose real length is known after the data is indexed


@dataclasses.dataclass(frozen=True)
class Setup:
    """The checked setup of a stage, before its data is indexed."""

    name: str
    stage: StageConfig
    mesh: Mesh
    rules: Rules
    model: Model
    media: MediaLayout
    mix: Mix
    pairs: bool  # whether its objective takes records as pairs
    share: tuple[int, int]  # which share of a batch's rows this process reads, of how many
    suites: tuple[Task, ...] = ()  # benchmarks that are asked while it trains


def set_up(config: Config, stages: Sequence[str], *, test: bool) -> list[Setup]:
    """Builds and opens the setup of each of `stages`, and the data of the test.

    Args:
      stages: names of the stages to run.
      test: whether the recipe's test follows.

    Raises:
      UserError: all mistakes, in one message.
    """
    problems = _Problems()
    mesh = problems.collect("config.mesh", lambda: make_mesh(config.mesh))
    made = [_set_up_stage(config, name, mesh, problems) for name in stages]
    if test:
        problems.collect("config.evaluation", lambda: _open_test(config))
    problems.finish()
    return [setup for setup in made if setup is not None]


def open_data(setups: Sequence[Setup], tokenizer: Any, date: str) -> dict[str, Samples]:
    """Opens the records of each stage and their renderer.

    Raises:
      UserError: every stage whose template does not work with the tokenizer, in one message.
    """
    problems = _Problems()
    opened = {
        s.name: problems.collect(
            f"config.stage.{s.name}",
            functools.partial(open_samples, s.stage.data, tokenizer, s.media, s.mix, pairs=s.pairs, date=date),
        )
        for s in setups
    }
    problems.finish()
    return {name: samples for name, samples in opened.items() if samples is not None}


def _set_up_stage(config: Config, name: str, mesh: Mesh | None, problems: _Problems) -> Setup | None:
    stage, rules, where = config.stage[name], Rules(), f"config.stage.{name}"
    problems.collect(where, lambda: check_trains(stage, name))
    problems.collect(where, lambda: check_heldout(stage, stage.data.heldout))
    media = problems.collect(where, lambda: media_layout(config.model, stage.data))
    if media is not None:
        problems.collect(where, lambda: check_settings(stage.data, media))
    objective = problems.collect(where, lambda: find_objective(stage.objective))
    mix = problems.collect(where, lambda: load_mix(stage.data))
    suites = problems.collect(where, lambda: load_suites(stage, config.evaluation))
    model = problems.collect(where, lambda: stage_model(config, stage))
    if mesh is None or model is None or objective is None:
        return None
    problems.collect(where, lambda: state_layout(model, stage, _STEPS, mesh, rules))
    share = problems.collect(where, lambda: _own_rows(stage, name, mesh, rules))
    if mix is None or share is None or media is None or suites is None:
        return None
    return Setup(name, stage, mesh, rules, model, media, mix, objective.pairs, share, suites)


def load_suites(stage: StageConfig, test: EvaluationConfig) -> tuple[Task, ...]:
    """The benchmarks of a stage.

    Raises:
      UserError: unknown ones, missing files, or a split whose truth only a server has.
    """
    if not stage.suites:
        return ()
    tasks = load_tasks(stage.suites, Path(test.suites_folder), limit=stage.suites_limit)
    hidden = [task for task in tasks if any(item.truth is None for item in task.items)]
    if hidden:
        names = ", ".join(f"{task.benchmark.name}:{task.split}" for task in hidden)
        other = f"{hidden[0].benchmark.name}:{listed(list(hidden[0].benchmark.splits), ' or ')}"
        raise UserError(f"suites: {names}: only a server has the truth; name another split, such as {other}")
    return tuple(tasks)


def _own_rows(stage: StageConfig, name: str, mesh: Mesh, rules: Rules) -> tuple[int, int]:
    check_batch_size(stage, name, batch_devices(mesh, rules))
    return own_rows(mesh, rules, stage.global_batch_size)


def _open_test(config: Config) -> None:
    test, data = config.evaluation, config.stage[config.stages[-1]].data
    load_source(test.source, test.image_folder, allow_outside=data.allow_outside)


class _Problems:
    """Collects the mistakes of several checks, each with its place in the recipe."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, None]] = {}  # message -> where, in order

    def collect(self, where: str, make: Callable[[], T]) -> T | None:
        """Returns `make()`, or None if it raises a `UserError`, which is collected."""
        try:
            return make()
        except UserError as error:
            self._found.setdefault(str(error), {})[where] = None
            return None

    def finish(self) -> None:
        """Raises one `UserError` if there are any."""
        if self._found:
            raise UserError("; ".join(f"{', '.join(where)}: {message}" for message, where in self._found.items()))
