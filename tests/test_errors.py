"""Errors of the system and of libraries, as a user is told them."""

import asyncio
import errno
import gc
import sys

import pytest

from jaxvlm import train
from jaxvlm.errors import UserError, explained
from jaxvlm.training.quiet import QuietPolicy


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_permission_is_named_as_one(code):
    said = str(explained(OSError(code, "Permission denied", "/data/run")))
    assert said.startswith("/data/run: Permission denied; give this user permission") and "room" not in said


def test_a_full_disk_asks_for_room():
    said = str(explained(OSError(errno.ENOSPC, "No space left on device", "/data/run")))
    assert "/data/run" in said and "free some space" in said


_LOOPS = """
import asyncio

def run(coroutine):
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(coroutine(loop))
    finally:
        loop.close()

async def task_fails(loop):
    async def fail():
        raise ValueError("lost")
    task = asyncio.ensure_future(fail())
    await asyncio.sleep(0)
    del task

async def error_is_set(loop):
    loop.create_future().set_exception(ValueError("lost"))

async def callback_fails(loop):
    loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
"""


@pytest.mark.parametrize("failure", ["task_fails", "error_is_set", "callback_fails"])
@pytest.mark.parametrize(("module", "reported"), [("orbax.checkpoint", False), ("tensorstore", False), ("other", True)])
def test_what_fails_unseen_in_event_loops_of_orbax_is_not_logged(monkeypatch, caplog, module, reported, failure):
    """An error that was set, not raised, has no traceback: tensorstore's threads set most of them."""
    monkeypatch.setattr(asyncio.events, "_event_loop_policy", QuietPolicy())
    space = {"__name__": module}
    exec(_LOOPS, space)
    space["run"](space[failure])
    gc.collect()
    assert bool([record for record in caplog.records if record.name == "asyncio"]) == reported


def test_a_result_that_comes_after_the_loop_was_closed_is_dropped():
    space = {"__name__": "orbax.checkpoint.x"}
    exec("def new(policy):\n    return policy.new_event_loop()", space)
    loop = space["new"](QuietPolicy())
    loop.close()
    loop.call_soon_threadsafe(print, "late")


def test_train_leaves_the_streams_as_they_were(tmp_path):
    before = sys.stdout, sys.stderr
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(UserError, match="is a file; a run is kept in a folder"):
        train.main(["--config", "configs/quickstart.py", "--workdir", str(tmp_path / "run")])
    assert (sys.stdout, sys.stderr) == before
