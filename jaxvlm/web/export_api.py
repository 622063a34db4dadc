"""Paths of export: which forms a run can take, and the conversion."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import Route

from jaxvlm.errors import UserError
from jaxvlm.runs import RunFolder
from jaxvlm.web.messages import Reply, body_of, field, get, post, query
from jaxvlm.web.paths import data_path, run_folder
from jaxvlm.web.problem import Problem

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

FOLDER = Path("exported")  # of exports without a folder of their own, in the studio's working directory
_NAME = re.compile(r"[^\W_][\w.-]{0,79}")
_DTYPES = ("", "float32", "bfloat16", "float16")
_NO_GGUF = (
    "jaxvlm reads GGUF files and writes none; export to Hugging Face, and convert that folder with llama.cpp's "
    "convert_hf_to_gguf.py"
)


def routes(studio: Studio) -> list[Route]:
    """The paths of this module."""

    def kinds(request: Request) -> Reply:
        return Reply(export_kinds(run_folder(studio, query(request, "run"))))

    def export(request: Request) -> Reply:
        command, about = export_command(studio, body_of(request))
        return Reply({"task": studio.tasks.start("export", command, about), "to": about["to"]})

    return [get("/api/export/kinds", kinds), post("/api/export", export)]


def export_kinds(run: Path) -> list[dict[str, Any]]:
    """{kind, available, why} of each form; `why` is the reason for one that this run cannot take."""
    no_adapters = None if has_adapters(run) else "no part of this run was trained with adapters"
    return [
        {"kind": "hf", "available": True, "why": None},
        {"kind": "peft", "available": no_adapters is None, "why": no_adapters},
        {"kind": "gguf", "available": False, "why": _NO_GGUF},
    ]


def has_adapters(run: Path) -> bool:
    """Whether the last stage of a run trains adapters.

    Raises:
      Problem: 409: its recipe cannot be read.
    """
    try:
        config = RunFolder(run).load_config()
    except UserError as error:
        raise Problem(409, "run_broken", str(error)) from error
    return "lora" in config.stage[config.stages[-1]].parts.policies.values()


def export_command(studio: Studio, body: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The command of an export, and what a page shows of it.

    Raises:
      Problem: 404: no such run, or a folder that is not allowed; 409: the form is not available, or the folder is
        there; 422: another field is wrong.
    """
    name, kind = field(body, "run", str), field(body, "kind", str)
    stage, step, dtype = field(body, "stage", str, ""), field(body, "step", int, 0), field(body, "dtype", str, "")
    run = run_folder(studio, name)
    known = {entry["kind"]: entry for entry in export_kinds(run)}
    if kind not in known or dtype not in _DTYPES:
        raise Problem(422, "bad_field", f"kind is one of {', '.join(known)}, dtype one of {_DTYPES}", field="kind")
    if not known[kind]["available"]:
        raise Problem(409, f"no_{kind}_export", known[kind]["why"], kind=kind)
    out = _new_folder(studio, field(body, "to", str))
    command = [sys.executable, "-m", "jaxvlm.convert", "export", f"--run={run}", f"--out={out}", "--json"]
    command += [f"--stage={stage}"] if stage else []
    command += [f"--step={step}"] if step else []
    command += [f"--dtype={dtype}"] if dtype else []
    if kind == "peft":
        base = field(body, "base", str, "")
        command += ["--adapter", *([f"--base={base}"] if base else [])]
    elif field(body, "merge", bool, has_adapters(run)):
        command += ["--merge"]
    about = {"run": name, "stage": stage, "step": step, "kind": kind, "to": str(out)}
    return command, about


def _new_folder(studio: Studio, text: str) -> Path:
    """A folder that is not there yet: a name in exported/, or a path whose parent is below a folder of --data."""
    path = Path(text)
    if not _NAME.fullmatch(path.name):
        raise Problem(422, "bad_field", f"{path.name!r} is no name of a folder", field="to")
    parent = FOLDER.absolute() if path.name == text else data_path(studio, str(path.parent))
    out = parent / path.name
    if out.exists():
        raise Problem(409, "folder_exists", f"{out} is there already; choose another name", path=str(out))
    return out
