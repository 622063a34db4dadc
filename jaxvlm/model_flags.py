"""The flags with which commands name the model that answers, and what they open."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxvlm.errors import UserError

if TYPE_CHECKING:
    from jaxvlm.config import Config
    from jaxvlm.inference.engine import Engine
    from jaxvlm.restore import Run


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `check_model_flags`, `open_flags` and `with_system` read."""
    parser.add_argument("--run", metavar="DIR", help="folder of a run; this or --from is needed")
    parser.add_argument(
        "--from",
        action="append",
        default=[],
        dest="sources",
        metavar="SOURCE",
        help="a folder, a GGUF file or a name on the hub; may be repeated, for parts in different places",
    )
    parser.add_argument(
        "--adapter", metavar="FOLDER", help="with --from: adapters of these weights, in PEFT's form; also on the hub"
    )
    parser.add_argument("--stage", default="", metavar="NAME", help="stage of the run's weights (default: the last)")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="step of the weights (default: the newest)")
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="with --from: conversation template (default: the tokenizer's own, or vicuna_v1)",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message (default: that of the model; '': none)")


def check_model_flags(args: argparse.Namespace) -> None:
    """Raises `UserError` unless one model is named, with the flags that go with it."""
    if bool(args.sources) == (args.run is not None):
        given = "both were given" if args.sources else "neither was given"
        raise UserError(f"one model is needed, --run DIR or --from SOURCE, and {given}; pass one of the two")
    if args.sources and (args.stage or args.step):
        raise UserError("--stage and --step choose among a run's checkpoints; leave them out with --from")
    if args.run is not None and args.template is not None:
        raise UserError("--template goes with --from; a run keeps the template of its training")
    if args.run is not None and args.adapter is not None:
        raise UserError("--adapter goes with --from; a run that was trained with adapters has its own")


def open_flags(args: argparse.Namespace) -> tuple[Config, Callable[[], Run]]:
    """The recipe of the model, from small files; and what loads its weights, which takes a while."""
    return _from_sources(args) if args.sources else _from_run(args)


def _from_run(args: argparse.Namespace) -> tuple[Config, Callable[[], Run]]:
    """The recipe of a run, and what opens it."""
    from jaxvlm.restore import open_run
    from jaxvlm.runs import RunFolder

    folder = Path(args.run)
    return RunFolder(folder).load_config(), lambda: open_run(folder, stage=args.stage, step=args.step)


def _from_sources(args: argparse.Namespace) -> tuple[Config, Callable[[], Run]]:
    """The recipe that the sources would have as a run, and what loads their weights."""
    from jaxvlm.processes import log
    from jaxvlm.source_model import open_model, read_sources

    found = read_sources(args.sources, args.template, args.adapter)
    log(*found.notes)
    return found.config, lambda: open_model(found)


def with_system(engine: Engine, system: str | None) -> Engine:
    """The engine with another system message; None: with its own."""
    from jaxvlm.data.text.templates import TEMPLATES

    if system is None:
        return engine
    template = TEMPLATES.get(engine.data.template)
    if system and template is not None and not template.takes_system:
        raise UserError(f'--system: the template "{engine.data.template}" writes no system message; leave it out')
    return dataclasses.replace(engine, data=dataclasses.replace(engine.data, system=system))
