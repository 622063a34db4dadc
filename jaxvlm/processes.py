"""A run on several processes: they connect, agree on values, and end together.

In a run of one process these functions do nothing.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public door

from jaxvlm.errors import SharedError, UserError, exit_code, explained, listed

T = TypeVar("T")

# A process without a heartbeat for that long is gone. Below a minute, above the delays of a busy machine.
LOST_SECONDS = 30.0
_JOIN_SECONDS = 300  # time limit for all processes to connect
_HEARTBEAT_SECONDS = 90  # jax's own; longer, so that our message comes first
_AGREE_SECONDS = 3600  # process 0 may be busy (training a tokenizer) while the others wait
_GIVE_UP_SECONDS = 10.0  # for a failed process to clean up before it is ended
_LAST_SECONDS = 5.0  # process 0 outlives the others: they read messages from it, and jax aborts those it leaves
_failing = threading.Event()
_calls = itertools.count()  # all processes make the same calls in the same order


def connect(args: argparse.Namespace) -> None:
    """Connects to the other processes, if flags or environment name any. Call it before jax is asked for devices.

    Args:
      args: with the flags of `command.add_process_flags`.

    Raises:
      UserError: some of the three values are missing or wrong, or there is no cluster to find them in. If the others do
        not connect, the process ends with a message and exit code 1, so that a launcher may try again.
    """
    names = {"coordinator": "COORDINATOR", "num_processes": "NUM_PROCESSES", "process_id": "PROCESS_ID"}
    given = {name: getattr(args, name) for name in names}
    if args.distributed is None:
        for name, variable in names.items():
            if given[name] is None:
                given[name] = os.environ.get(f"JAXVLM_{variable}") or None
    named = [name for name, value in given.items() if value is not None]
    if args.distributed is None and not named:
        return
    if args.distributed is None:
        missing = [f"--{name.replace('_', '-')}" for name in names if name not in named]
        if missing:
            raise UserError(
                f"a run of several processes needs --coordinator, --num-processes and --process-id; missing: "
                f"{', '.join(missing)}; give all three (flags, or JAXVLM_COORDINATOR and so on), or --distributed auto"
            )
        given = _checked(given)
        if given["num_processes"] == 1:
            return
    elif named:
        raise UserError("--distributed auto finds coordinator, number and id by itself; leave the other flags out")
    values = {"coordinator_address": given["coordinator"], "num_processes": given["num_processes"]}
    values["process_id"] = given["process_id"]
    _explain_abort(_not_joined)
    try:
        jax.distributed.initialize(
            **{name: value for name, value in values.items() if value is not None},
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if args.distributed and distributed.global_state.coordinator_address is None:
            raise UserError(
                "--distributed auto finds no cluster here (TPU VM, GKE and Slurm are known); give --coordinator, "
                "--num-processes and --process-id, or leave it out for a run of one process"
            ) from error
        how = "--distributed auto" if args.distributed else f"--coordinator {given['coordinator']}"
        reason = str(error).strip().splitlines()
        raise UserError(
            f"the processes of this run could not be joined ({how}): {reason[0] if reason else type(error).__name__}; "
            f"{_JOIN_ADVICE}"
        ) from error
    _explain_abort(_coordinator_lost if index() > 0 else None)


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    try:
        number, own = int(given["num_processes"]), int(given["process_id"])
    except ValueError:
        raise UserError(
            f"--num-processes {given['num_processes']!r} and --process-id {given['process_id']!r} must be whole numbers"
        ) from None
    if number < 1 or not 0 <= own < number:
        raise UserError(f"--process-id {own} of --num-processes {number}: ids go from 0 to the number minus 1")
    if ":" not in given["coordinator"]:
        raise UserError(f"--coordinator {given['coordinator']!r} has no port; write HOST:PORT, such as 10.0.0.2:8476")
    return given | {"num_processes": number, "process_id": own}


def count() -> int:
    """The number of processes."""
    return distributed.global_state.num_processes if distributed.global_state.client is not None else 1


def index() -> int:
    """The index of this process, from 0."""
    return distributed.global_state.process_id if distributed.global_state.client is not None else 0


def log(*lines: str) -> None:
    """Logs to standard error, on process 0 only; standard output is for results."""
    if index() == 0:
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def _client() -> Any:
    return distributed.global_state.client


def exchange(text: str) -> list[str]:
    """All-gathers a text: returns those of all processes, in their order."""
    if count() == 1:
        return [text]
    client, call = _client(), next(_calls)
    client.key_value_set(f"jaxvlm/exchange/{call}/{index()}", text or " ")
    keys = [f"jaxvlm/exchange/{call}/{i}" for i in range(count())]
    texts = [client.blocking_key_value_get(key, _AGREE_SECONDS * 1000) for key in keys]
    return ["" if other == " " else other for other in texts]


def gather(own: Mapping[int, str]) -> dict[int, str]:
    """Merges the entries of all processes; all of them must call it."""
    texts = exchange(json.dumps(list(own.items())))
    return {number: value for text in texts for number, value in json.loads(text)}


def from_first(make: Callable[[], T]) -> T:
    """Broadcasts the JSON value that `make()` returns on process 0; the others wait for it.

    Raises:
      UserError: on all of them, if `make` raises one on process 0.
    """
    if count() == 1:
        return make()
    client, key = _client(), f"jaxvlm/first/{next(_calls)}"
    if index() == 0:
        try:
            value = make()
        except UserError as error:
            client.key_value_set(key, json.dumps({"error": str(error)}))
            raise
        client.key_value_set(key, json.dumps({"value": value}))
        return value
    received = json.loads(client.blocking_key_value_get(key, _AGREE_SECONDS * 1000))
    if "error" in received:
        raise UserError(f"{received['error']} (from process 0)")
    return received["value"]


def check_same(values: dict[str, Any]) -> None:
    """Checks that all processes were started with the same values.

    Raises:
      UserError: on all processes, naming every key that differs, and where.
    """
    others = [json.loads(text) for text in exchange(json.dumps(values))]
    problems = []
    for i, other in enumerate(others[1:], 1):
        for name in sorted(others[0].keys() | other.keys()):
            first, its = others[0].get(name, "absent"), other.get(name, "absent")
            if first != its:
                problems.append(f"{name} is {first!r} on process 0 and {its!r} on process {i}")
    if problems:
        raise UserError(
            f"the processes of this run were started with different settings: {listed(problems)}; "
            "start all with the same command, recipe and version"
        )


def failing() -> bool:
    """Whether this process has failed and broadcast that."""
    return _failing.is_set()


class Peers:
    """Heartbeats of the other processes, and which of them are still alive."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[str, float]] = {}  # text, and the local time of its last change

    def tell(self, own: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """Sends the heartbeat of this process and returns those received last; to be called every few seconds.

        Ends this process with a message if another one has failed or is gone.
        """
        if count() == 1:
            return {0: own}
        client = _client()
        client.key_value_set(f"jaxvlm/beat/{index()}", json.dumps(own), allow_overwrite=True)
        for _, text in client.key_value_dir_get("jaxvlm/failed/"):
            failed = json.loads(text)
            if failed["process"] != index():
                exit_now(f"process {failed['process']} stopped: {failed['message']}", failed["code"])
        now = time.monotonic()
        for key, text in client.key_value_dir_get("jaxvlm/beat/"):
            i = int(key.rsplit("/", 1)[-1])
            if i not in self._heard or self._heard[i][0] != text:
                self._heard[i] = text, now
        beats = {i: json.loads(text) for i, (text, _) in self._heard.items()}
        for i in range(count()):
            silent = now - self._heard.setdefault(i, ("{}", now))[1]
            if i != index() and silent > LOST_SECONDS and beats.get(i, {}).get("phase") != "done":
                last = beats.get(i, {})
                where = f"last on host {last['host']} in phase {last['phase']}, step {last['step']}; " if last else ""
                exit_now(f"process {i} is gone: no heartbeat for {silent:.0f} seconds; {where}{_ADVICE}", 1)
        return beats


_JOIN_ADVICE = "start all of them, and check that this host reaches the coordinator"
_ADVICE = "this process stops too; look at the end of that one's log, then start all again with --resume-or-start"


def exit_now(message: str, code: int) -> None:
    """Exits at once, without a barrier: some of the other processes will not reach one."""
    print(f"\nerror: process {index()} of {count()}: {message}", file=sys.stderr, flush=True)
    for call in _at_end:
        call(code, message)
    _end(code)


_at_end: list[Callable[[int, str], None]] = []


@contextlib.contextmanager
def on_end(call: Callable[[int, str], None]) -> Iterator[None]:
    """Within it `call(code, message)` is made before `exit_now` ends the process."""
    _at_end.append(call)
    try:
        yield
    finally:
        _at_end.remove(call)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if index() == 0:
        time.sleep(_LAST_SECONDS)
    os._exit(code)  # jax would wait for the other processes


@contextlib.contextmanager
def abort_together() -> Iterator[None]:
    """Aborts all processes if one raises within it."""
    try:
        yield
    except BaseException as error:
        known = explained(error)
        shared = isinstance(error, SharedError) or isinstance(error, SystemExit) and error.code == 75
        if count() > 1 and not shared and not _failing.is_set():
            _failing.set()
            if known is None and isinstance(error, jax.errors.JaxRuntimeError):
                # Often a consequence of another process's end; then `Peers` ends this process with a better message.
                print(f"error: process {index()}: {str(error)[:500]}", file=sys.stderr, flush=True)
                print(f"waiting {LOST_SECONDS:.0f} s to see whether another process is gone", file=sys.stderr)
                time.sleep(LOST_SECONDS + 6)
            _broadcast_failure(known or error)
        raise


def _broadcast_failure(error: BaseException) -> None:
    code = exit_code(error)
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:500]}"
    failure = {"process": index(), "code": code, "message": message}
    with contextlib.suppress(Exception):  # the store is in process 0, which may be gone
        _client().key_value_set(f"jaxvlm/failed/{index()}", json.dumps(failure))
    atexit.register(_end, code)
    timer = threading.Timer(_GIVE_UP_SECONDS, _end, (code,))
    timer.daemon = True  # Python joins other threads before it runs atexit handlers
    timer.start()


def _not_joined() -> str:
    address = distributed.global_state.coordinator_address
    return f"the others were not all there within {_JOIN_SECONDS} seconds (coordinator {address}); {_JOIN_ADVICE}"


def _coordinator_lost() -> str | None:
    address = distributed.global_state.coordinator_address or ""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, ValueError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        return None
    return f"process 0 is gone: no answer at {address}; {_ADVICE}"


def _explain_abort(explain: Callable[[], str | None] | None) -> None:
    """Ends with one message and exit code 1 when jax aborts because another process is missing.

    jax logs a stack trace and calls abort(), also from threads of its own, where no Python handler runs; hence ctypes.

    Args:
      explain: returns the message, or None for another abort, which then happens; None: all aborts happen.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
        if explain is not None and (sentence := explain()) is not None:
            exit_now(sentence, 1)

    global _abort_handler
    _abort_handler = on_abort  # C holds no reference
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(6, ctypes.cast(on_abort, ctypes.c_void_p) if explain is not None else None)  # None: SIG_DFL


_abort_handler: Any = None
