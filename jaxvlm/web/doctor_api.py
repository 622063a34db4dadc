"""Paths of the doctor: versions, disk, memory, what is installed, and what is greyed out for want of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import Route

from jaxvlm.web.machines import MACHINES, launch_folder
from jaxvlm.web.messages import Reply, get, post, query
from jaxvlm.web.problem import Problem
from jaxvlm.web.texts import read_tail

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_PACKAGES = ("jaxvlm", "jax", "jaxlib", "flax", "transformers", "numpy", "pillow")
# Package -> the extra that brings it, and what is greyed out without it.
_OPTIONAL = {
    "libtpu": ("tpu", "plans for TPU slices"),
    "fastapi": ("serve", "chat"),
    "easy-vqa": ("quickstart", "the quickstart"),
    "gguf": ("gguf", "models of GGUF files, such as SmolLM2"),
    "datasets": ("hf", "data of the Hugging Face hub, and Parquet, Arrow and CSV files"),
    "pycocoevalcap": ("evaluate", "scores of captions"),
    "openpyxl": ("evaluate", "MMBench"),
    "av": ("video", "videos"),
}
_TOOLS = {
    "bash": "launch pages",
    "gcloud": "TPU VMs",
    "xpk": "GKE",
    "kubectl": "GKE",
    "sbatch": "Slurm",
    "git": "copies of the checkout",
}
_LOW_DISK = 10 * 2**30  # bytes; a 7B checkpoint of adapters with its optimizer takes less


def routes(studio: Studio) -> list[Route]:
    """The paths of this module."""

    def doctor(_: Request) -> Reply:
        return Reply({"checks": [*_versions(), *_optional(), *_machine(studio), *_folders(studio), *_tools()]})

    def probe(_: Request) -> Reply:
        return Reply({"task": studio.tasks.start("probe", [sys.executable, "-m", "jaxvlm.web.device_probe"], {})})

    def probed(request: Request) -> Reply:
        return Reply(read_probe(studio, query(request, "task")))

    return [get("/api/doctor", doctor), post("/api/doctor/probe", probe), get("/api/doctor/probe", probed)]


def _check(name: str, value: str, ok: bool | None, why: str = "") -> dict[str, Any]:
    """A line of the doctor; `ok` of None: good to know, and neither good nor bad."""
    return {"name": name, "value": value, "ok": ok, "why": why}


def version_of(package: str) -> str | None:
    """The version of a package; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[dict[str, Any]]:
    found = [_check("python", f"{platform.python_version()} ({sys.executable})", sys.version_info >= (3, 11))]
    for package in _PACKAGES:
        version = version_of(package)
        found.append(_check(package, version or "", version is not None, "" if version else "it is not installed"))
    return found


def _optional() -> list[dict[str, Any]]:
    found = []
    for package, (extra, use) in _OPTIONAL.items():
        version = version_of(package)
        why = "" if version else f"without it: no {use}; pip install -e '.[{extra}]' in a checkout of jaxvlm"
        found.append(_check(package, version or "", True if version else None, why))
    return found


def _machine(studio: Studio) -> list[dict[str, Any]]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(_existing(studio.root))
    why = "" if disk.free >= _LOW_DISK else "less than 10 GiB are free; a run that fills the disk stops"
    return [
        _check("host", f"{socket.gethostname()}, {platform.platform()}", None),
        _check(
            "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()), None
        ),
        _check("memory", f"{memory / 2**30:.1f} GiB", None),
        _check("disk", f"{disk.free / 2**30:.1f} of {disk.total / 2**30:.1f} GiB free", disk.free >= _LOW_DISK, why),
    ]


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _folders(studio: Studio) -> list[dict[str, Any]]:
    found = []
    for name, path in (("root", studio.root), ("recipes", studio.recipes)):
        can_write = os.access(_existing(path), os.W_OK)
        found.append(_check(name, str(path.absolute()), can_write, "" if can_write else "it cannot be written"))
    for path in studio.data_roots:
        found.append(_check("data", str(path.absolute()), path.is_dir(), "" if path.is_dir() else "it is not there"))
    if not studio.data_roots:
        found.append(_check("data", "", None, "no folder of data is open to the studio; start it with --data DIR"))
    return found


def _tools() -> list[dict[str, Any]]:
    found = []
    for tool, use in _TOOLS.items():
        path = shutil.which(tool)
        found.append(_check(tool, path or "", True if path else None, "" if path else f"needed here for: {use}"))
    missing = [machine.page for machine in MACHINES.values() if not (launch_folder() / machine.page).is_file()]
    why = f"{', '.join(missing)} are missing; they come with a checkout of jaxvlm" if missing else ""
    return [*found, _check("launch pages", str(launch_folder()), not missing, why)]


def read_probe(studio: Studio, task: str) -> dict[str, Any]:
    """What the probe of devices found.

    Raises:
      Problem: 404: no such task; 409: it runs still, or it failed.
    """
    folder, state = studio.tasks.folder(task), studio.tasks.get(task)
    if state["state"] == "running":
        raise Problem(409, "task_running", "the probe is not ready", task=task)
    lines = read_tail(folder / "log.txt", 2**16).splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError) as error:
        last = lines[-1] if lines else "no output"
        raise Problem(409, "task_failed", f"the devices cannot be read: {last}", task=task) from error
