"""Inspects the data of a recipe before a run: what would be lost, what the model would see.

Examples:
  python -m jaxvlm.inspect_data check --config configs/quickstart.py
  python -m jaxvlm.inspect_data check --config configs/llava15_7b_finetune.py --config.stage.finetune.data.tokens=4096
  python -m jaxvlm.inspect_data show --config configs/quickstart.py --rows 20
  python -m jaxvlm.inspect_data show --batch runs/mine/nonfinite/finetune-120
  python -m jaxvlm.inspect_data prepare --config configs/llava15_7b_finetune.py --out data/prepared --jpeg 95

`check` reads every record of the stage (of images the header and the end, no pixels). It lists records that break a
rule, the losses and the fill of rows of other sizes, duplicates, and the steps of the stage. Exit code 2 if anything
would be lost. In --out are problems.jsonl (every record that would be lost or cut), lengths.png and report.json. With
--rows N it begins with N rows of 1,000 records that are chosen at random, as a page (rows.html) and for programs
(rows.json). A second check of the same data takes seconds: its index is cached in JAXVLM_CACHE.

`show` writes a page (HTML, for any browser, also offline) of training rows as the model will see them: pixels after
resizing and padding, every token, the supervised ones in colour. --batch shows one that a run has written instead,
because its loss was not finite.

`prepare` decodes and resizes every image once and writes the records into shards (ArrayRecord), each source of the
recipe into a folder of its own if there are several; it prints what to put into the recipe. A run on the result sees
the same records in the same order, with the same pixels (with --jpeg nearly). After a stop it continues where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.command import ExitWithResult, Parser, Subparser, check_stage, load_config, run
from jaxvlm.errors import UserError

if TYPE_CHECKING:
    from jaxvlm.inspect.stage_data import Findings


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("inspect_data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Subparser)
    check = commands.add_parser("check", help="report what would be lost, and what other rows would lose")
    check.add_argument("--rows", type=int, default=0, metavar="N", help="also write N rows: rows.html and rows.json")
    show = commands.add_parser("show", help="write a page of rows as the model will see them")
    show.add_argument("--rows", type=int, default=16, metavar="N", help="number of rows (default: 16)")
    show.add_argument("--first", type=int, default=0, metavar="N", help="from this row of the first epoch on")
    show.add_argument("--batch", type=Path, metavar="DIR", help="a batch that a run wrote, instead of a recipe's data")
    prepare = commands.add_parser("prepare", help="decode and resize images once, for many runs")
    prepare.add_argument(
        "--jpeg", type=int, default=0, metavar="Q", help="keep images as JPEG of this quality, not PNG"
    )
    prepare.add_argument("--shard-records", type=int, default=4096, metavar="N", help="of a file (default: 4096)")
    prepare.add_argument("--on-bad", choices=("fail", "skip"), help="records that break a rule (default: the recipe's)")
    for command in (check, show, prepare):
        command.add_argument("--config", metavar="FILE", help="recipe, such as configs/quickstart.py")
        command.add_argument("--stage", metavar="NAME", help="stage of the recipe (default: the last)")
        command.add_argument("--out", type=_folder, metavar="DIR", help="where files go (default: runs/RECIPE-data)")
    args, overrides = parser.parse_with_overrides(argv)

    from jaxvlm.inspect import stage_data  # here, since it takes seconds, and --help needs none of it

    if args.command == "show" and args.batch:
        if args.config:
            raise UserError("--batch shows a batch as it was; leave --config out")
        return _print(stage_data.show_batch(args.batch, args.out or args.batch))
    if not args.config:
        parser.error(f"{args.command} needs --config FILE")
    config = load_config(args.config, overrides)
    name = args.stage or config.stages[-1]
    check_stage(config, name, args.config)
    out = args.out or Path(f"runs/{Path(args.config).stem}-data")
    if args.command == "check":
        if args.rows < 0:
            raise UserError(f"--rows {args.rows}: 0 for none, or how many")
        result = _print(stage_data.check_stage_data(config, config.stage[name], out, args.rows))
        if result["loses"]:
            raise ExitWithResult(2, result)
        return result
    if args.command == "prepare":
        if not 0 <= args.jpeg <= 95 or args.shard_records < 1:
            raise UserError(
                f"--jpeg {args.jpeg} --shard-records {args.shard_records}: a quality from 1 to 95, 1 record or more"
            )
        skip = (args.on_bad or config.stage[name].data.on_bad) == "skip"
        folder = args.out or out / "prepared"
        return _print(
            stage_data.prepare_stage_data(config, config.stage[name], folder, args.jpeg, args.shard_records, skip=skip)
        )
    if args.rows < 1 or args.first < 0:
        raise UserError(f"--rows {args.rows} --first {args.first}: at least 1 row, from 0 on")
    return _print(stage_data.show_stage_data(config, config.stage[name], args.first, args.rows, out))


def _print(findings: Findings) -> dict[str, Any]:
    """Prints what was found for a person; returns what `--json` prints."""
    print(findings.text)
    return findings.result


def _folder(name: str) -> Path:
    if "://" in name:
        raise argparse.ArgumentTypeError(
            f"{name} is not a local folder; give one, and copy it when it is complete (as with `gcloud storage cp -r`)"
        )
    return Path(name)


if __name__ == "__main__":
    sys.exit(run(main))
