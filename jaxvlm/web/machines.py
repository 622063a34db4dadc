"""Where a run can train: the launch pages, their settings, and a page with the settings of one run.

The lines NAME=VALUE # help between `# --- settings` and `# --- end of settings` of launch/*.sh are the form of a
machine. A page for a run is the same file with other values in that block; nothing else of it changes.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jaxvlm
from jaxvlm.planning.slices import known_slices

_BEGIN, _END = "# --- settings", "# --- end of settings"
_LINE = re.compile(r"^([A-Z_]+)=(\S*)(\s+)# (.*)$")
_DRY_SECONDS = 30
_NEVER = re.compile(r"[\0-\x1f\x7f]")  # control characters, which a setting's line cannot hold
_SLICES = {"v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}  # our names -> Google Cloud's accelerator types


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of machine.

    Attributes:
      page: its file in launch/.
      verbs: sub-commands that are shown with --dry-run, in the order in which a person runs them; "": there are none.
      slice_setting: the setting that takes a slice; "": it has no slices.
      takes_count: whether "2xv5e-16" is written as SLICES=2.
    """

    id: str
    page: str
    verbs: tuple[str, ...]
    slice_setting: str = ""


MACHINES = {
    machine.id: machine
    for machine in (
        Machine("here", "local.sh", ("",)),
        Machine("tpu_vm", "tpu_vm.sh", ("create", "install", "run"), "ACCELERATOR_TYPE"),
        Machine("gke", "gke.sh", ("create", "run"), "TPU_TYPE"),
        Machine("slurm", "slurm.sh", ("write",)),
    )
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A line of a page's settings."""

    name: str
    default: str
    help: str


class SettingsError(ValueError):
    """Settings that a page does not take; `problems` has (name, message) of each."""

    def __init__(self, problems: list[tuple[str, str]]):
        super().__init__("; ".join(f"{name}: {message}" for name, message in problems))
        self.problems = problems


def launch_folder() -> Path:
    """The folder of the launch pages, in a checkout next to the package."""
    return Path(jaxvlm.__file__).resolve().parents[1] / "launch"


def read_settings(page: str) -> list[Setting]:
    """The settings of a page's text, in their order."""
    found = []
    for line in _block(page)[1].splitlines():
        if match := _LINE.match(line):
            name, value, _, help = match.groups()
            found.append(Setting(name, value, help))
    return found


def _block(page: str) -> tuple[str, str, str]:
    """What is before the settings, the settings, and what follows them."""
    before, begin, rest = page.partition(f"{_BEGIN}\n")
    block, end, after = rest.partition(f"{_END}\n")
    if not begin or not end:
        raise ValueError(f"the page has no block from {_BEGIN!r} to {_END!r}")
    return before + begin, block, end + after


def list_machines() -> list[dict[str, Any]]:
    """Every machine with its settings and slices, ready for JSON; "missing" is why it has none."""
    found = []
    for machine in MACHINES.values():
        path = launch_folder() / machine.page
        settings = read_settings(path.read_text()) if path.is_file() else []
        missing = None if settings else f"{path} is not there; the launch pages come with a checkout of jaxvlm"
        found.append(
            {
                "id": machine.id,
                "page": f"launch/{machine.page}",
                "settings": [dataclasses.asdict(setting) for setting in settings],
                "slices": known_slices() if machine.slice_setting else [],
                "slice_setting": machine.slice_setting or None,
                "missing": missing,
            }
        )
    return found


def accelerator_type(slice_name: str) -> tuple[str, int]:
    """Google Cloud's name of a slice, and how many of it: "2xv5e-16" is ("v5litepod-16", 2)."""
    count, _, single = slice_name.rpartition("x")
    generation, _, size = single.partition("-")
    return f"{_SLICES[generation]}-{size}", int(count or 1)


def write_page(page: str, values: Mapping[str, str]) -> str:
    """The text of a page with other settings.

    Args:
      page: the text of a file in launch/.
      values: setting -> value, as a person means it; they are quoted for the shell. Others keep their default.

    Raises:
      SettingsError: every unknown setting, and every value with a control character.
    """
    settings = {setting.name: setting for setting in read_settings(page)}
    problems = [
        (name, f"no setting of this machine; it has {', '.join(settings)}") for name in values if name not in settings
    ]
    problems += [
        (name, f"{value!r} has a control character, which no setting takes; remove it")
        for name, value in values.items()
        if _NEVER.search(value)
    ]
    if problems:
        raise SettingsError(problems)
    before, block, after = _block(page)
    lines = []
    for line in block.splitlines():
        match = _LINE.match(line)
        if match and match[1] in values:
            assignment = f"{match[1]}={shlex.quote(values[match[1]]) if values[match[1]] else ''}"
            line = f"{assignment:<{len(match[0]) - len(match[4]) - 3}} # {match[4]}"
        lines.append(line)
    return before + "\n".join(lines) + "\n" + after


def dry_run(machine: Machine, values: Mapping[str, str]) -> str:
    """What the page would run with these settings, as it prints it with --dry-run; nothing is started.

    A mistake in the settings is reported in the page's own words.
    """
    shown = []
    for verb in machine.verbs:
        flags = [f"--{name.lower().replace('_', '-')}={value}" for name, value in values.items()]
        command = ["bash", str(launch_folder() / machine.page), *([verb] if verb else []), "--dry-run", *flags]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_DRY_SECONDS,
        )
        name = f"launch/{machine.page}{f' {verb}' if verb else ''}"
        shown.append(f"# {name}{'' if done.returncode == 0 else f'  (exit code {done.returncode})'}\n{done.stdout}")
    return "\n".join(shown)
