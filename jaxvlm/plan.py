"""Reports whether a recipe fits a TPU slice, its speed and its cost, without a TPU, data or weights.

Examples:
  python -m jaxvlm.plan --config configs/llava15_7b_finetune.py --topology v5e-16
  python -m jaxvlm.plan --config configs/llava15_7b_lora.py --topology v5e-8 --price-per-chip-hour 1.2 --json
  python -m jaxvlm.plan --config configs/llava15_13b_finetune.py --topology 2xv5e-64 --config.mesh.data=2
  python -m jaxvlm.plan --config configs/llava15_7b_finetune.py --topology v5e-16 --search --budget-minutes 60

The TPU compiler of libtpu compiles the recipe's real train step for the slice, which takes a minute or two for 7B, and
reports its memory. The time is an estimate, made of the compiler's own estimates. Exit code 3: it does not fit.
v5p slices are named by cores, two a chip, as Google Cloud does; NxSLICE is several slices. --topology here compiles for
the devices of this machine, and reports their memory alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jaxvlm.command import ExitWithResult, Parser, check_stage, load_config, run
from jaxvlm.errors import UserError
from jaxvlm.files import cache_folder

DOES_NOT_FIT = 3  # exit code


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("plan", __doc__)
    parser.add_config()
    parser.add_argument(
        "--topology", required=True, metavar="SLICE", help="such as v5e-16, v5p-8, v6e-8, 2xv5e-64; or here"
    )
    parser.add_argument("--stage", metavar="NAME", help="stage of the recipe (default: the last)")
    about = parser.add_argument_group("assumptions about the data")
    about.add_argument("--records", type=int, metavar="N", help="records of the data, for hours and cost")
    about.add_argument("--samples-per-row", type=float, metavar="X", help="samples packed into a row, on average")
    about.add_argument("--units-per-row", type=float, metavar="X", help="media units in use (default: all)")
    about.add_argument("--filled", type=float, default=1.0, metavar="X", help="share of a row without padding")
    about.add_argument("--supervised", type=float, metavar="X", help="supervised positions of a row, on average")
    about.add_argument("--price-per-chip-hour", type=float, metavar="X", help="in any currency")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="also list the N that take longest")
    parser.add_argument(
        "--search", action="store_true", help="try rows, remat, mesh shapes, compiler options and media units of a row"
    )
    parser.add_argument(
        "--budget-minutes", type=float, default=30.0, metavar="X", help="time limit of a search (default: 30)"
    )
    default = cache_folder() / "plan"
    parser.add_argument(
        "--cache", type=Path, default=default, metavar="DIR", help=f"cache of results (default: {default})"
    )
    parser.add_argument("--no-cache", action="store_true", help="compile again")
    args, overrides = parser.parse_with_overrides(argv)

    from jaxvlm.planning.compiler import use_tpu_compiler  # here, since it takes seconds, and --help needs none of it
    from jaxvlm.planning.report import Assumptions, table, to_json
    from jaxvlm.planning.search import plan_once, search
    from jaxvlm.planning.slices import HERE, find_slice

    if args.topology == HERE and args.search:
        raise UserError("--topology here with --search: a search compares times, which are estimated for TPUs only")
    if args.topology != HERE:
        use_tpu_compiler()
    config, on = load_config(args.config, overrides), None if args.topology == HERE else find_slice(args.topology)
    stage = args.stage or config.stages[-1]
    check_stage(config, stage, args.config)
    cache = None if args.no_cache else args.cache
    assumed = Assumptions(
        args.records, args.samples_per_row, args.units_per_row, args.filled, args.supervised, args.price_per_chip_hour
    )
    if on is None:
        from jaxvlm.planning.here import plan_here

        plan = plan_here(config, stage, assumed)
        print(table(plan))
        result, fits = to_json(plan), plan.compiled.memory.fits
    elif args.search:
        found = search(config, stage, on, assumed, minutes=args.budget_minutes, cache=cache, show=_log)
        print(found.table())
        result, fits = found.to_json(), bool(found.frontier())
    else:
        plan = plan_once(config, stage, on, assumed, cache)
        print(table(plan, operations=args.operations))
        result, fits = to_json(plan), plan.compiled.memory.fits
    if not fits:
        raise ExitWithResult(DOES_NOT_FIT, result)
    return result


def _log(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main))
