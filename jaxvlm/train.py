"""Trains the stages of a recipe, one after another, then tests the result.

Examples:
  python -m jaxvlm.train --config configs/quickstart.py
  python -m jaxvlm.train --config configs/quickstart.py --config.steps=10 --workdir runs/try
  python -m jaxvlm.train --config configs/quickstart.py --stage finetune --workdir runs/quickstart
  python -m jaxvlm.train --config configs/quickstart.py --resume
  python -m jaxvlm.train --config configs/quickstart.py --resume-or-start --distributed auto

Everything is left in --workdir (default: runs/ and the recipe's name): config.json, checkpoints/STAGE/STEP,
metrics.jsonl, tensorboard/, loss.png, ledger.json and, if the recipe has a test, evaluation.json and samples.png.
A stopped run goes on with --resume, step for step as if it had never stopped. --stage runs one stage alone, from the
result of the stage before it if the workdir has one.

Several processes (hosts of a TPU slice, say) are each started with this command, on a workdir that all of them see; a
run may go on with another number of them. heartbeats/I.json says what process I is doing.

Told to stop (SIGTERM, a preemption), a run finishes its step, saves and ends with exit code 75: start it again. Other
codes: 0 done, 1 a crash or another process gone, 2 a mistake that a person must mend.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxvlm import processes
from jaxvlm.command import Parser, load_config, run
from jaxvlm.config import Config, StageConfig
from jaxvlm.data.rows.pipeline import Pipeline, build_pipeline
from jaxvlm.errors import UserError
from jaxvlm.evaluate import evaluate_run
from jaxvlm.families.registry import media_layout
from jaxvlm.files import Lock, replace_text, unfailing_streams
from jaxvlm.inference.chat import answer, score
from jaxvlm.processes import say
from jaxvlm.run import (
    all_keys,
    build_tokenizer,
    check_batch_size,
    check_stage,
    check_trains,
    differing_keys,
    has_begun,
    load_saved_config,
    open_run,
    save_config,
    saved_tokenizer,
    stage_folder,
    stage_model,
)
from jaxvlm.sharding import Rules, batch_devices, batch_sharding, make_mesh, to_devices
from jaxvlm.start import find_origins, starting_params
from jaxvlm.training.checkpoint import Checkpoints, is_finished, whole_steps
from jaxvlm.training.loop import Keepers, train
from jaxvlm.training.metrics import Writer, plot_metrics
from jaxvlm.training.nonfinite import NonFinite
from jaxvlm.training.preemption import Preemption, StartAgain
from jaxvlm.training.profile import Profile
from jaxvlm.training.state import Layout, State, initial_state, merge, state_layout, table_of_parts
from jaxvlm.training.step import compile_eval_step
from jaxvlm.training.watch import Watch


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("train", __doc__)
    parser.add_config()
    parser.add_argument("--workdir", metavar="DIR", help="where the run is kept (default: runs/RECIPE)")
    parser.add_argument("--stage", metavar="NAME", help="run only this stage of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the workdir")
    parser.add_argument("--resume-or-start", action="store_true", help="the same, or start if there is none")
    processes.add_flags(parser)
    args, overrides = parser.parse_with_overrides(argv)
    config = load_config(args.config, overrides)
    if args.stage:
        check_stage(config, args.stage, args.config)
    stages = (args.stage,) if args.stage else config.stages
    if "://" in (args.workdir or ""):
        raise UserError(
            f"--workdir {args.workdir}: a workdir is a folder that every process sees; mount the bucket (gcsfuse) and "
            "pass the folder"
        )
    workdir = Path(args.workdir or f"runs/{Path(args.config).stem}")
    how = "resume or start" if args.resume_or_start else "resume" if args.resume else "start"
    with unfailing_streams():
        processes.connect(args)
        with processes.together():
            return run_together(workdir, config, stages, how)


def run_together(workdir: Path, config: Config, stages: tuple[str, ...], how: str) -> dict[str, Any]:
    """Runs the stages in a workdir that is locked, on all processes; returns what `--json` prints."""
    processes.check_same(all_keys(config) | {"--stage": stages, "--workdir": str(workdir), "--resume": how})
    lock = Lock(workdir / "lock")
    try:
        processes.from_first(lambda: start_run(workdir, config, stages, how, lock))
        with Watch(workdir) as watch, Preemption() as preemption:
            return run_stages(workdir, config, stages, watch, preemption)
    except StartAgain:
        say("", "preempted: --resume or --resume-or-start continues from the newest checkpoint")
        raise
    finally:
        lock.release()


def run_stages(
    workdir: Path, config: Config, stages: tuple[str, ...], watch: Watch, preemption: Preemption
) -> dict[str, Any]:
    """Runs the stages that are not finished, and the test; returns what `--json` prints."""
    began = time.perf_counter()
    processes.from_first(lambda: save_tokenizer(workdir, config))
    tokenizer = saved_tokenizer(workdir, config)
    test = config.evaluation.source and stages[-1] == config.stages[-1]
    for name in stages:
        if is_over(workdir, name):
            say(f"stage {name} is finished already")
        else:
            run_stage(workdir, config, name, tokenizer, watch, preemption)
            if test or name != stages[-1]:
                preemption.check()
    result: dict[str, Any] = {"workdir": str(workdir)}
    if test:
        with watch.phase("evaluate", 0):
            result |= evaluate_run(open_run(workdir, stage=stages[-1]), config.evaluation)
    if processes.index() == 0:
        say(list_files(workdir, stages[-1]))
    say(f"trained in {(time.perf_counter() - began) / 60:.1f} minutes; of the time: {watch.summary()}")
    return result | {"shares": watch.shares()}


def list_files(workdir: Path, stage: str) -> str:
    """Where everything is, and what to do next."""
    step = max(whole_steps(stage_folder(workdir, stage)), default=0)
    files = {
        f"checkpoints/{stage}/{step}": "the weights",
        "metrics.jsonl": "a line of numbers for each step",
        "tensorboard": "the same for `tensorboard --logdir`",
        "loss.png": "the curves",
        "samples.png": "test images with question, answer and truth",
        "evaluation.json": "every answer of the test",
        "ledger.json": "what became of every record",
    }
    lines = [f"  {workdir / name}: {what}" for name, what in files.items() if (workdir / name).exists()]
    ask = f'python -m jaxvlm.generate --run {workdir} --image FILE --prompt "..."'
    return "\n".join(["", "left for you:", *lines, f"ask it yourself: {ask}"])


def start_run(workdir: Path, config: Config, stages: tuple[str, ...], how: str, lock: Lock) -> None:
    """Makes the workdir, or checks that the run in it may go on, and locks it.

    Args:
      how: "start", "resume" or "resume or start".

    Raises:
      UserError: the workdir holds a run and it is not to be resumed, or is in use; nothing to resume; another recipe.
    """
    if workdir.is_dir():
        lock.take()
    elif workdir.exists():
        raise UserError(f"--workdir {workdir} is a file; a run is kept in a folder")
    begun = [name for name in stages if stage_folder(workdir, name).exists()]
    if begun and how == "start":
        raise UserError(
            f"{workdir} already holds a run (stages begun: {', '.join(begun)}); pass --resume to go on with it, "
            "or choose another --workdir"
        )
    if has_begun(workdir):
        differing = differing_keys(load_saved_config(workdir), config)
        if differing:
            raise UserError(
                f"the run in {workdir} was started with another recipe: {'; '.join(differing)}; "
                "resume with the same values, or choose another --workdir"
            )
    elif how == "resume":
        raise UserError(f"nothing to resume in {workdir}; leave --resume out to start")
    workdir.mkdir(parents=True, exist_ok=True)
    lock.take()
    save_config(workdir, config)


def is_over(workdir: Path, name: str) -> bool:
    """Whether a stage has reached its last step, and has its ledger, which is written last."""
    return processes.from_first(
        lambda: is_finished(stage_folder(workdir, name)) and name in load_ledgers(workdir / "ledger.json")
    )


def save_tokenizer(workdir: Path, config: Config) -> None:
    """Saves the recipe's tokenizer in the run, unless it has begun: then it has one."""
    if not has_begun(workdir):
        build_tokenizer(config).save_pretrained(workdir / "tokenizer")


def run_stage(workdir: Path, config: Config, name: str, tokenizer: Any, watch: Watch, preemption: Preemption) -> None:
    """Runs one stage from where it stands to its end, and writes curves and ledger."""
    stage, mesh, rules = config.stage[name], make_mesh(config.mesh), Rules()
    check_trains(stage, name)
    check_batch_size(stage, name, batch_devices(mesh, rules))
    model = stage_model(config, stage)
    origins = find_origins(workdir, config, name)  # before the data is gone through, which may take long
    share, shares = share_of_rows(mesh, rules, stage.global_batch_size)
    pipeline = build_pipeline(
        stage.data,
        tokenizer,
        layout=media_layout(config.model, stage.data),
        rows=stage.global_batch_size,
        seed=config.seed,
        process_index=share,
        process_count=shares,
    )
    processes.check_same({f"the data of stage {name}": pipeline.fingerprint})
    steps = min(-(-pipeline.num_rows(stage.epochs) // stage.global_batch_size), config.steps or sys.maxsize)
    layout = state_layout(model, stage, steps, mesh, rules)
    say(f"stage {name}: {steps} steps of {stage.global_batch_size} rows", table_of_parts(layout, stage))

    nonfinite = NonFinite(
        workdir / "nonfinite",
        name,
        policy=stage.on_nonfinite,
        limit=stage.nonfinite_limit,
        look_up=pipeline.look_up,
        draw=pipeline.layout.preview,
    )
    profile = Profile(workdir / "profile" / name, config.profile)
    checkpoints = Checkpoints(stage_folder(workdir, name), keep=stage.keep_checkpoints)
    batches, restored = pipeline.batches(), checkpoints.restore_newest(layout.state)
    if restored is None:
        params, notes = starting_params(origins, config, layout)
        say(*notes)
        state = initial_state(layout, config.seed, params)
    else:
        state, position, newest = restored
        batches.set_state(position)
        say(f"resumed at step {newest} of {steps}")
    writer = Writer(workdir, name, first_step=int(state.step), steps=steps)
    keepers = Keepers(checkpoints, writer, watch, nonfinite, preemption, profile)
    watch.begin_stage()
    try:
        evaluate = make_evaluate(config, stage, layout, pipeline, tokenizer)
        with processes.together():
            train(layout, stage, steps, state, batches, evaluate, keepers)
    finally:
        profile.close()
        batches.close()
        writer.close()
        if not processes.failing():  # else the others end too, and do not answer
            checkpoints.close()
    if processes.index() == 0:
        ledger = pipeline.ledger(steps * stage.global_batch_size, batches.broken)
        say(ledger.table())
        plot_metrics(workdir / "metrics.jsonl", workdir / "loss.png")
        save_ledger(workdir / "ledger.json", name, ledger.to_dict())  # the last: it tells that the stage is over


def share_of_rows(mesh: Mesh, rules: Rules, rows: int) -> tuple[int, int]:
    """Which share of a batch's rows this process reads, of how many.

    There are as many shares as processes, or fewer if a row is split over the devices of several, which then read the
    same.
    """
    held: dict[int, set[int]] = {}  # process -> rows
    places: dict[Any, Any] = dict(batch_sharding(mesh, rules).devices_indices_map((rows,)))
    for device, where in places.items():
        held.setdefault(device.process_index, set()).update(range(*where[0].indices(rows)))
    shares = sorted({min(mine) for mine in held.values()})
    own = held[processes.index()]
    if len(own) * len(shares) != rows or any(len(mine) != len(own) for mine in held.values()):
        raise UserError(
            f"config.mesh = {dict(mesh.shape)} gives the {len(held)} processes unequal shares of the rows; let tensor "
            "divide the devices of a process, or be a multiple of them"
        )
    return shares.index(min(own)), len(shares)


def make_evaluate(
    config: Config, stage: StageConfig, layout: Layout, pipeline: Pipeline, tokenizer: Any
) -> Callable[[State], dict[str, float]]:
    """The function that says what the held-out records say of a state: loss, and exact match of generated answers."""
    eval_step = compile_eval_step(layout)
    questions = pipeline.heldout_questions(stage.eval_records)
    if stage.eval_every and not questions:
        raise UserError(
            "eval_every is set, but no record is held out; set data.heldout, such as 0.02, or eval_every to 0"
        )

    def evaluate(state: State) -> dict[str, float]:
        loss = weight = 0.0
        for batch in pipeline.heldout_batches(stage.global_batch_size, stage.eval_records):
            sums = eval_step(state, to_devices(batch, layout.mesh, layout.rules))
            loss, weight = loss + float(sums.loss), weight + float(sums.weight)
        answers = answer(
            layout.model,
            merge(state.trained, state.frozen),
            tokenizer,
            stage.data,
            questions,
            mesh=layout.mesh,
            rules=layout.rules,
            max_new_tokens=config.evaluation.max_new_tokens,
            batch_size=config.evaluation.batch_size,
        )
        return {"heldout_loss": loss / weight, "heldout_exact_match": score(questions, answers)["exact_match"]}

    return evaluate


def save_ledger(path: Path, stage: str, ledger: dict[str, Any]) -> None:
    """Writes a stage's ledger beside those of the other stages."""
    replace_text(path, json.dumps(load_ledgers(path) | {stage: ledger}, indent=1) + "\n")


def load_ledgers(path: Path) -> dict[str, Any]:
    """The ledgers that are written, by stage; a file that cannot be read has none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return dict(json.loads(path.read_text()))
    return {}


if __name__ == "__main__":
    sys.exit(run(main))
