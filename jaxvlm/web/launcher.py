"""Starts a command that outlives the server, and leaves its end in a file.

    server -> first process -> launcher -> command
              (ends at once)   (session of its own, waits, writes the exit file)

The launcher is no child of the server, so neither the end of the server nor Ctrl-C in its terminal reaches it. The
output of the command goes to a file, never to a pipe that somebody would have to read. A container ends all its
processes with the first one: there, a run outlives the server only if the server is not that first process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from jaxvlm.files import replace_text
from jaxvlm.process_identity import identity, is_alive
from jaxvlm.web.problem import Problem

_START_SECONDS = 60.0  # for a Python to start on a busy machine
# Variables of the server that a command receives, by the beginning of the name.
_PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_", "TZ", "TMPDIR", "XDG_", "PYTHON", "VIRTUAL_ENV"),
    *("CONDA", "LD_LIBRARY_PATH", "DYLD_", "JAX_", "XLA_", "TPU_", "LIBTPU_", "CUDA_", "NVIDIA_", "NCCL_", "MPL"),
    *("JAXVLM_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "MKL_", "OPENBLAS_", "TF_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "GOOGLE_", "CLOUDSDK_"),
)
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
_NOT_PASSED = ("JAXVLM_API_KEY",)  # of the server's own `serve`
_TRIES, _RETRY_SECONDS = 60, 10.0  # to write the exit file on a disk that is full


def passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of the variables that a command may have: an allow list, so that no unknown secret reaches one."""
    return {
        name: value
        for name, value in environment.items()
        if name.upper().startswith(_PASSED) and name not in _NOT_PASSED
    }


def shown_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The same variables for a page or a file, with secrets masked."""
    return {
        name: "***" if any(word in name.upper() for word in _SECRET) else value for name, value in environment.items()
    }


def launch(
    command: list[str],
    folder: Path,
    log: Path,
    exit_file: Path,
    environment: Mapping[str, str],
    *,
    grace: float | None = None,
) -> dict[str, Any]:
    """Starts a command, and returns when it runs.

    Args:
      command: program and arguments.
      folder: the command's working directory.
      log: takes its output; it is appended to.
      exit_file: takes {code, signal, time}, once the command has ended, unless the command has written it itself. An
        old one is removed.
      environment: variables that are added to those of `passed_environment`.
      grace: seconds between the SIGTERM that the launcher forwards and SIGKILL; None: the command has all the time that
        it wants.

    Returns:
      identity of the launcher; with `pgid`, the process group of the command, and `child`, the command's identity.

    Raises:
      Problem: 500: the command cannot be started.
    """
    exit_file.unlink(missing_ok=True)
    own = [sys.executable, "-m", "jaxvlm.web.launcher", "--folder", str(folder), "--log", str(log)]
    own += ["--exit", str(exit_file), *(["--grace", str(grace)] if grace is not None else [])]
    with log.open("ab") as output:
        reply = _start([*own, "--", *command], output, _environment(environment)) or {
            "error": f"the launcher has failed; {log} has the reason"
        }
    if "error" in reply:
        raise Problem(500, "not_started", f"the command cannot be started: {reply['error']}", command=command)
    return reply


def _start(launcher: list[str], log: IO[bytes], environment: dict[str, str]) -> dict[str, Any] | None:
    """Runs the first process; what the launcher reports, or None if it fails to."""
    with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
        done = subprocess.run(
            launcher,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            timeout=_START_SECONDS,
            env=environment,
            start_new_session=True,
            check=False,
        )
        return json.loads(done.stdout)
    return None


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    # The jaxvlm of the server also for a command in another working directory; and a log that is never behind.
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}
    return passed_environment(os.environ) | own | dict(added)


def stop_launcher(launcher: Mapping[str, Any]) -> bool:
    """Sends SIGTERM to a launcher that was started with `grace`, which forwards it; False: it has ended already."""
    if not is_alive(launcher):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(launcher["pid"], signal.SIGTERM)
    return True


def main(argv: list[str]) -> int:
    """The first process, and after a fork the launcher."""
    parser = argparse.ArgumentParser("python -m jaxvlm.web.launcher")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--exit", type=Path, required=True)
    parser.add_argument("--grace", type=float)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    if os.fork():
        return 0
    os.setsid()
    _run(args)
    os._exit(0)  # the parent's clean-up is not the fork's


def _run(args: argparse.Namespace) -> None:
    """Starts the command, reports the identities on standard output, waits for its end."""
    started: list[subprocess.Popen] = []

    def forward(*_: object) -> None:
        for child in started:
            _terminate(child.pid, args.grace)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with args.log.open("ab") as log:
        try:
            child = subprocess.Popen(
                args.command,
                cwd=args.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        except OSError as error:
            _report({"error": str(error)}, log.fileno())
            return
        started.append(child)
        _report(identity(os.getpid()) | {"pgid": child.pid, "child": _identity_of(child)}, log.fileno())
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    # Before the child is reaped, so that its group's number is still its own: workers that it left behind.
    _signal(child.pid, signal.SIGKILL)
    _write_exit(args.exit, child.wait())


def _identity_of(child: subprocess.Popen) -> dict[str, Any]:
    """The child's identity; without a start if it has ended already, and then it is alive to nobody."""
    try:
        return identity(child.pid)
    except ProcessLookupError:
        return identity(os.getpid()) | {"pid": child.pid, "start_ticks": None}


def _terminate(group: int, grace: float | None) -> None:
    _signal(group, signal.SIGTERM)
    if grace is not None:
        timer = threading.Timer(grace, _signal, [group, signal.SIGKILL])
        timer.daemon = True
        timer.start()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _report(reply: dict[str, Any], log: int) -> None:
    """Writes the reply to the server's pipe, and lets go of the pipe."""
    with contextlib.suppress(OSError):  # the server is gone
        os.write(1, json.dumps(reply).encode())
    os.dup2(log, 1)
    os.dup2(log, 2)


def _write_exit(path: Path, status: int) -> None:
    """Writes the exit file, unless the command has done so itself; after a signal it has not."""
    code, number = (status, None) if status >= 0 else (None, -status)
    text = json.dumps({"code": code, "signal": number, "time": round(time.time(), 1)}) + "\n"
    for _ in range(_TRIES):
        if status >= 0 and path.is_file():
            return
        try:
            replace_text(path, text)
            return
        except FileNotFoundError:  # somebody has removed the folder
            return
        except OSError as error:
            print(f"warning: {path} cannot be written: {error}", file=sys.stderr, flush=True)
            time.sleep(_RETRY_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
