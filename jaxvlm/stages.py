"""Runs the stages of a recipe in order, in the folder of a run."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxvlm import processes
from jaxvlm.config import Config, EvaluationConfig, StageConfig
from jaxvlm.data.recipe_tokenizer import build_tokenizer, saved_tokenizer
from jaxvlm.data.rows.pipeline import Pipeline, index_rows
from jaxvlm.data.rows.samples import Samples
from jaxvlm.evaluation.evaluate import evaluate_run
from jaxvlm.evaluation.scoring import score
from jaxvlm.evaluation.suite import main_number
from jaxvlm.evaluation.task import Task
from jaxvlm.inference.engine import Engine
from jaxvlm.initial_weights import check_tokenizer, find_origins, overridden_settings, starting_params
from jaxvlm.preflight import Setup, open_data, set_up
from jaxvlm.processes import log
from jaxvlm.restore import open_run
from jaxvlm.run_process import recorded
from jaxvlm.runs import RunFolder, all_keys, example
from jaxvlm.sharding import to_devices
from jaxvlm.stage_checks import check_heldout
from jaxvlm.training.checkpoint import Checkpoints
from jaxvlm.training.checkpoint_files import is_finished, whole_steps
from jaxvlm.training.loop import Services, train
from jaxvlm.training.metrics import Writer, plot_metrics
from jaxvlm.training.nonfinite import NonFinite
from jaxvlm.training.preemption import Preemption, StartAgain
from jaxvlm.training.profile import Profile
from jaxvlm.training.state import Layout, State, initial_state, merge, state_layout, table_of_parts
from jaxvlm.training.step import compile_eval_step, evaluate_batches
from jaxvlm.training.watch import Watch


def run_recipe(folder: RunFolder, config: Config, stages: Sequence[str], how: str) -> dict[str, Any]:
    """Runs the stages of a recipe and its test, on all processes.

    Args:
      stages: names of the stages to run.
      how: "start", "resume" or "resume or start".

    Returns:
      what `--json` prints.

    Raises:
      UserError: raised by `RunFolder.check` and `preflight`, before anything is written.
      StartAgain: the run was preempted; its state is saved.
    """
    began = time.perf_counter()
    config = dataclasses.replace(config, date=processes.from_first(lambda: folder.date_of(config)))
    processes.check_same(all_keys(config) | {"--stage": stages, "--workdir": str(folder), "--resume": how})
    try:
        processes.from_first(lambda: folder.check(config, stages, how))
        left = [name for name in stages if not is_over(folder, name)]
        test = bool(config.evaluation.source) and stages[-1] == config.stages[-1]
        setups = set_up(config, left, test=test)
        processes.from_first(lambda: folder.create(config))
        with recorded(folder), Watch(folder.heartbeat(processes.index())) as watch, Preemption() as preemption:
            processes.from_first(lambda: _save_tokenizer(folder, config))
            tokenizer = saved_tokenizer(folder.tokenizer, config)
            samples = open_data(setups, tokenizer, config.date)
            log(*(f"stage {name} is finished already" for name in stages if name not in left))
            for setup in setups:
                stage_run = StageRun(folder, config, setup, samples.pop(setup.name), tokenizer)
                stage_run.train(watch, preemption)
                if test or setup.name != stages[-1]:
                    preemption.check()
            result: dict[str, Any] = {"workdir": str(folder)}
            if test:
                with watch.phase("evaluate", 0):
                    opened = open_run(folder.path, stage=stages[-1])
                    evaluation = evaluate_run(opened, config.evaluation, progress=True)
                log(*evaluation.notes, evaluation.summary())
                result |= evaluation.score
            if processes.index() == 0:
                log(_what_is_left(folder, config, stages[-1]))
            log(f"trained in {(time.perf_counter() - began) / 60:.1f} minutes; of the time: {watch.summary()}")
            return result | {"shares": watch.shares()}
    except StartAgain:
        log("", "preempted: --resume or --resume-or-start continues from the newest checkpoint")
        raise
    finally:
        folder.lock.release()


def is_over(folder: RunFolder, name: str) -> bool:
    """Whether a stage has reached its last step, and has its ledger, which is written last."""
    return processes.from_first(lambda: is_finished(folder.checkpoints(name)) and name in folder.ledgers())


def _save_tokenizer(folder: RunFolder, config: Config) -> None:
    """Saves the recipe's tokenizer in the run; a run that has started keeps the tokenizer that it has."""
    if not folder.has_begun:
        build_tokenizer(config).save_pretrained(folder.tokenizer)


def _what_is_left(folder: RunFolder, config: Config, stage: str) -> str:
    """The closing message: the files of the run, and the next command."""
    step = max(whole_steps(folder.checkpoints(stage)), default=0)
    return "\n".join(["", "files:", *folder.describe(stage, step), f"try the model: {example(folder, config)}"])


class StageRun:
    """One stage of a run: indexes its data, makes or restores its state, trains it to its end."""

    def __init__(self, folder: RunFolder, config: Config, setup: Setup, samples: Samples, tokenizer: Any):
        """Indexes the data.

        Raises:
          UserError: initial weights that do not fit; data without a record to train on, or with corrupt ones;
            benchmarks with questions that are longer than a row.
        """
        self.folder, self.name, self.stage, self.tokenizer = folder, setup.name, setup.stage, tokenizer
        self.config, self.suites = config, setup.suites
        self.origins = find_origins(folder, config, setup.name)  # before the data is indexed, which may take minutes
        check_tokenizer(self.origins, tokenizer)
        rows = setup.stage.global_batch_size
        self.pipeline = index_rows(samples, rows=rows, seed=config.seed, process=setup.share)
        log(*(f"stage {self.name}: {line}" for line in self.pipeline.notes))
        processes.check_same({f"the data of stage {self.name}": self.pipeline.fingerprint})
        self.steps = min(-(-self.pipeline.num_rows(self.stage.epochs) // rows), config.steps or sys.maxsize)
        self.layout = state_layout(setup.model, self.stage, self.steps, setup.mesh, setup.rules)
        for task in self.suites:
            self._make_engine({}).check([task.record(item) for item in task.items])
        log(f"stage {self.name}: {self.steps} steps of {rows} rows", table_of_parts(self.layout, self.stage))

    def train(self, watch: Watch, preemption: Preemption) -> None:
        """Trains from the stage's current step to its last, and writes curves and ledger."""
        folder, name, stage, pipeline = self.folder, self.name, self.stage, self.pipeline
        nonfinite = NonFinite(
            folder.nonfinite,
            name,
            policy=stage.on_nonfinite,
            limit=stage.nonfinite_limit,
            look_up=pipeline.look_up,
            draw=pipeline.layout.preview,
        )
        profile = Profile(folder.profile(name), self.config.profile)
        checkpoints = Checkpoints(folder.checkpoints(name), keep=stage.keep_checkpoints)
        batches = pipeline.batches()
        state = self._state(checkpoints, batches)
        writer = Writer(folder.metrics, folder.tensorboard, name, first_step=int(state.step), steps=self.steps)
        services = Services(checkpoints, writer, watch, nonfinite, preemption, profile)
        watch.begin_stage(name, self.steps)
        try:
            test = self.config.evaluation
            evaluations = (
                (stage.eval_every, make_evaluate(test, stage, self.layout, pipeline, self._make_engine)),
                (stage.suites_every, make_evaluate_suites(self.suites, test.batch_size, self._make_engine)),
            )
            with processes.abort_together():
                train(self.layout, stage, self.steps, state, batches, evaluations, services)
        finally:
            profile.close()
            batches.close()
            writer.close()
            if not processes.failing():  # else the others are ending and would not answer
                checkpoints.close()
        if processes.index() == 0:
            ledger = pipeline.ledger(self.steps * stage.global_batch_size, batches.broken)
            log(ledger.table())
            plot_metrics(folder.metrics, folder.curves)
            folder.save_ledger(name, ledger.to_dict())

    def _make_engine(self, params: dict) -> Engine:
        layout = self.layout
        return Engine(
            layout.model, params, self.tokenizer, self.stage.data, layout.mesh, layout.rules, self.config.date
        )

    def _state(self, checkpoints: Checkpoints, batches: Any) -> State:
        """The state of the newest checkpoint, with `batches` at its position; without one, that of step 0."""
        restored = checkpoints.restore_newest(self.layout.state)
        if restored is None:
            params, notes = starting_params(self.origins, self.config, self.layout)
            if processes.index() == 0:  # it reads the tokenizer of a source
                notes += overridden_settings(self.origins, self.stage.data)
            log(*notes)
            return initial_state(self.layout, self.config.seed, params)
        state, position, newest = restored
        batches.set_state(position)
        log(f"resumed at step {newest} of {self.steps}")
        return state


def make_evaluate(
    test: EvaluationConfig,
    stage: StageConfig,
    layout: Layout,
    pipeline: Pipeline,
    make_engine: Callable[[dict], Engine],
) -> Callable[[State], dict[str, float]]:
    """The function that evaluates a state on the held-out records: the objective, and exact match of answers."""
    eval_step = compile_eval_step(layout)
    questions = pipeline.heldout_questions(stage.eval_records)
    check_heldout(stage, pipeline.heldout)

    def evaluate(state: State) -> dict[str, float]:
        rows = pipeline.heldout_batches(stage.global_batch_size, stage.eval_records)
        batches = (to_devices(batch, layout.mesh, layout.rules) for batch in rows)
        found = evaluate_batches(eval_step, state, batches)
        if questions:
            answers = make_engine(merge(state.trained, state.frozen)).answer(
                questions, max_new_tokens=test.max_new_tokens, batch_size=test.batch_size
            )
            found["exact_match"] = score(questions, answers)["exact_match"]
        return {f"heldout_{name}": value for name, value in found.items()}

    return evaluate


def make_evaluate_suites(
    suites: Sequence[Task], batch_size: int, make_engine: Callable[[dict], Engine]
) -> Callable[[State], dict[str, float]]:
    """The function that asks a state the benchmarks of its stage: the main number of each."""

    def evaluate(state: State) -> dict[str, float]:
        engine = make_engine(merge(state.trained, state.frozen))
        return {f"suite_{task.name}": main_number(engine, task, batch_size) for task in suites}

    return evaluate
