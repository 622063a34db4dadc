"""Errors of the system and of libraries, as a user is told them."""

import asyncio
import errno
import logging
import sys

import pytest

from jaxvlm import train
from jaxvlm.errors import UserError, explained
from jaxvlm.training.quiet import is_not_of_orbax


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_permission_is_named_as_one(code):
    said = str(explained(OSError(code, "Permission denied", "/data/run")))
    assert said.startswith("/data/run: Permission denied; give this user permission") and "room" not in said


def test_a_full_disk_asks_for_room():
    said = str(explained(OSError(errno.ENOSPC, "No space left on device", "/data/run")))
    assert "/data/run" in said and "free some space" in said


def _failed(module, message):
    """What asyncio logs of a task that failed in a module."""
    space = {"__name__": module}
    exec("def fail():\n    raise ValueError('a read of an array')", space)
    try:
        space["fail"]()
    except ValueError:
        return logging.LogRecord("asyncio", logging.ERROR, "", 0, message, (), sys.exc_info())


@pytest.mark.parametrize("message", ["Task exception was never retrieved", "Exception in callback", "reworded"])
def test_what_orbax_leaves_behind_is_not_logged_whatever_its_words(message):
    assert not is_not_of_orbax(_failed("orbax.checkpoint.handlers", message))
    assert not is_not_of_orbax(_failed("tensorstore", message))
    assert is_not_of_orbax(_failed("somebody.elses", message))


def test_a_real_task_of_a_module_of_orbax_is_silent(caplog):
    space = {"__name__": "orbax.checkpoint.fake"}
    exec("async def fail():\n    raise ValueError('lost')", space)

    async def forget():
        task = asyncio.ensure_future(space["fail"]())
        await asyncio.sleep(0.01)
        del task

    logger = logging.getLogger("asyncio")
    logger.addFilter(is_not_of_orbax)
    asyncio.run(forget())
    assert "lost" not in caplog.text


def test_train_leaves_the_streams_as_they_were(tmp_path):
    before = sys.stdout, sys.stderr
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(UserError, match="is a file; a run is kept in a folder"):
        train.main(["--config", "configs/quickstart.py", "--workdir", str(tmp_path / "run")])
    assert (sys.stdout, sys.stderr) == before
