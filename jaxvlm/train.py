"""Trains the stages of a recipe, one after another, then tests the result.

Examples:
  python -m jaxvlm.train --config configs/quickstart.py
  python -m jaxvlm.train --config configs/quickstart.py --config.steps=10 --workdir runs/try
  python -m jaxvlm.train --config configs/quickstart.py --stage finetune --workdir runs/quickstart
  python -m jaxvlm.train --config configs/quickstart.py --resume
  python -m jaxvlm.train --config configs/quickstart.py --resume-or-start --distributed auto

All results are in --workdir (default: runs/ and the recipe's name): config.json, checkpoints/STAGE/STEP,
metrics.jsonl, tensorboard/, loss.png, ledger.json and, if the recipe has a test, evaluation.json and samples.png.
--resume continues a stopped run, step for step as if it had never stopped. --stage runs one stage alone, from the
result of the stage before it if the workdir has one.

Several processes (such as hosts of a TPU slice) are each started with this command, on a workdir that all see; a
run may continue with another number of them. heartbeats/I.json shows what process I is doing.

On SIGTERM, as at a preemption, a run finishes its step, saves, and ends with exit code 75: start it again. Other
codes: 0 done, 1 a crash or another process gone, 2 a mistake to fix.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jaxvlm.command import Parser, add_process_flags, check_stage, load_config, run
from jaxvlm.errors import UserError
from jaxvlm.files import non_raising_streams


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("train", __doc__)
    parser.add_config()
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--stage", metavar="NAME", help="run only this stage of the recipe")
    parser.add_argument("--resume", action="store_true", help="continue the run in the workdir")
    parser.add_argument("--resume-or-start", action="store_true", help="the same, or start if there is none")
    add_process_flags(parser)
    args, overrides = parser.parse_with_overrides(argv)

    # Here, since they take seconds, and --help needs none of them.
    from jaxvlm import processes
    from jaxvlm.runs import RunFolder
    from jaxvlm.stages import run_recipe

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
    with non_raising_streams():
        processes.connect(args)
        with processes.abort_together():
            return run_recipe(RunFolder(workdir), config, stages, how)


if __name__ == "__main__":
    sys.exit(run(main))
