"""What the commands share: recipes with overrides, help, and readable errors."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxvlm.config import Config, check_values
from jaxvlm.errors import UserError, exit_code, explained, nearest
from jaxvlm.families.registry import resolve
from jaxvlm.options import Option, find_options, list_options


class Subparser(argparse.ArgumentParser):
    """Argument parser whose mistakes are a `UserError`; also of one command of several (`parser_class`)."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.add_argument("--json", action="store_true", help="print one machine-readable last line")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises `UserError` in place of argparse's exit, so that all mistakes look the same."""
        raise UserError(f"{message}; see {self.prog} --help")


class Parser(Subparser):
    """Argument parser of a command: its module's docstring is its help."""

    def __init__(self, name: str, doc: str | None):
        super().__init__(prog=f"python -m jaxvlm.{name}", description=doc)

    def add_config(self, *, required: bool = True) -> None:
        """Adds `--config FILE` and, in the help, its overrides."""
        self.add_argument("--config", required=required, metavar="FILE", help="recipe, such as configs/quickstart.py")
        self.add_argument(
            "--help-config",
            nargs="?",
            const="",
            metavar="WORD",
            help="explain the recipe's options, or those with a word",
        )
        self.epilog = "Any value of the recipe can be set with --config.a.b=value; --help-config lists them all."

    def parse_with_overrides(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses and also returns the arguments of the form `--config.a.b=value` (or `--config.a.b value`)."""
        args, rest = self.parse_known_args(argv)
        strange = [arg for i, arg in enumerate(rest) if not _is_override(arg, rest[i - 1] if i else "")]
        if strange:
            self.error(f"unknown arguments: {' '.join(strange)}")
        if getattr(args, "help_config", None) is not None:
            if not args.config:
                self.error("--help-config needs --config FILE")
            found = find_options(list_options(load_recipe(args.config, rest)), args.help_config)
            _print_options(found, as_json=args.json)
            self.exit()
        return args, rest


def _print_options(options: Sequence[Option], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(option) for option in options], default=str))
        return
    for option in options:
        allowed = f", one of: {', '.join(c or repr(c) for c in option.choices)}" if option.choices else ""
        allowed += " or others" if option.choices and option.is_open else ""
        default = "" if option.value == option.default else f", default {option.default!r}"
        kind = f"{option.type} or None" if option.can_be_none else option.type
        print(f"--config.{option.key}={option.value!r}\n    {kind}{allowed}{default}")
        print(textwrap.fill(option.help, 110, initial_indent="    ", subsequent_indent="    "))
    if not options:
        print("no option has that word in its name or explanation")


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `processes.connect` reads."""
    group = parser.add_argument_group("several processes (each is started with the same command)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 (or JAXVLM_COORDINATOR)")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many (or JAXVLM_NUM_PROCESSES)")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0 (or JAXVLM_PROCESS_ID)")
    group.add_argument(
        "--distributed",
        choices=["auto"],
        help="auto: find all three in the cluster's environment (TPU VM, GKE, Slurm)",
    )


def _is_override(arg: str, before: str) -> bool:
    return arg.startswith("--config.") or (before.startswith("--config.") and "=" not in before)


def load_recipe(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs a recipe file and sets the overrides.

    Raises:
      UserError: no such file, an override of an unknown key (with the nearest one) or of the wrong type.
    """
    if not Path(path).is_file():
        raise UserError(f"no recipe at {path}; the ones that come with jaxvlm are in configs/")
    try:
        recipe = runpy.run_path(path)["get_config"]()
        keys = list(_leaf_keys(recipe))
    except Exception as error:  # a recipe is a program, and may fail in any way
        raise UserError(f"the recipe {path} cannot be read: {type(error).__name__}: {error}") from error
    unknown = [arg for arg in overrides if arg.startswith("--") and _name(arg) not in keys]
    if unknown:
        raise UserError("; ".join(_unknown_override(_name(arg), keys) for arg in unknown))
    argv, values = ["jaxvlm", *overrides], flags.FlagValues()
    config_flags.DEFINE_config_dict("config", recipe, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.Error as error:
        raise UserError(f"a value of the wrong type: {error}") from error
    return values.config


def _name(argument: str) -> str:
    return argument.removeprefix("--config.").split("=")[0]


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """The resolved recipe; see `load_recipe` and `families.registry.resolve` for what it raises."""
    config = resolve(load_recipe(path, overrides).to_dict())
    undefined = [name for name in config.stages if name not in config.stage]
    if undefined or not config.stages:
        raise UserError(f"config.stages = {config.stages}, but config.stage has {', '.join(config.stage) or 'none'}")
    check_values(config)
    return config


def check_stage(config: Config, name: str, recipe: str) -> None:
    """Raises `UserError` unless the recipe, a file, has a stage called `name`."""
    if name not in config.stages:
        raise UserError(f"--stage {name}: {recipe} has the stages {', '.join(config.stages)}")


def _leaf_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, ConfigDict):
            yield from _leaf_keys(value, f"{prefix}{key}.")


def _unknown_override(name: str, keys: list[str]) -> str:
    last = name.split(".")[-1]
    near = nearest(name, keys) or next((key for key in keys if key.split(".")[-1] == last), "")
    hint = f"did you mean config.{near}?" if near else "configs/base.py lists all keys"
    return f"unknown key config.{name} ({hint})"


class ExitWithResult(Exception):  # noqa: N818 - not an error
    """A result with an exit code of its own, such as `plan`'s 3 for "it does not fit"; not an error."""

    def __init__(self, exit_code: int, result: dict[str, Any]):
        super().__init__(exit_code, result)
        self.exit_code, self.result = exit_code, result


def run(main: Callable[[list[str]], dict[str, Any] | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    The code is 0; that of an `ExitWithResult`; 130 after Ctrl-C; or 2 after an error that a user can fix, which
    `errors.explained` turns into one line.

    Args:
      main: takes the arguments; with `--json` among them its result is printed as the last line, in JSON.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a path may hold bytes that are no UTF-8
    code = 0
    try:
        result = main(argv)
    except ExitWithResult as ended:
        code, result = ended.exit_code, ended.result
    except Exception as error:
        known = explained(error)
        if known is None or "--debug" in argv:
            raise
        print(f"error: {known}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt as error:
        print("stopped", file=sys.stderr)
        return exit_code(error)
    if "--json" in argv and result is not None:
        print(json.dumps(result))
    return code
