"""Atomic writes, locks, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxvlm.errors import UserError


def cache_folder() -> Path:
    """JAXVLM_CACHE of the environment, or ~/.cache/jaxvlm. It may be deleted at any time."""
    return Path(os.environ.get("JAXVLM_CACHE") or Path.home() / ".cache" / "jaxvlm")


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file atomically: a reader finds the old text or the new one, also after a kill."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Replaces any file atomically."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_bytes(content)
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        error.filename = str(path)  # a failed write has no file name
        raise


class NonRaisingStream:
    """A text stream that ignores failed writes: to a log on a full disk, or a closed terminal."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes; ignores failures."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes; ignores failures."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def non_raising_streams() -> Iterator[None]:
    """Within it standard output and error ignore failed writes, so that a run does not end because of its log."""
    with (
        contextlib.redirect_stdout(NonRaisingStream(sys.stdout)),
        contextlib.redirect_stderr(NonRaisingStream(sys.stderr)),
    ):
        yield


class Lock:
    """A folder's lock. The kernel releases it when the process ends, however it ends."""

    def __init__(self, path: Path):
        self._path = path
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Takes the lock, unless this object has it already.

        Raises:
          UserError: another process has it.
        """
        if self._file is not None:
            return
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                print(
                    f"warning: {self._path} cannot be locked ({error}); do not start a second run there",
                    file=sys.stderr,
                )
            else:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                file.close()
                raise UserError(
                    f"{self._path.parent} is in use by another run, {owner}; wait until it ends, stop it, or choose "
                    "another --workdir"
                ) from None
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Releases the lock; the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None
