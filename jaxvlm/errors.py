"""Errors that a user can fix."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence
from typing import Any


class UserError(ValueError):
    """A mistake in the user's input, config or files: commands print it without a traceback and exit with code 2.

    The message names the rule, the value found, its place and the remedy.
    """


class SharedError(UserError):
    """An error that every process of a run raises at the same place, so none has to abort the others."""


def listed(items: Sequence[Any], separator: str = "; ", limit: int = 10) -> str:
    """The first `limit` items in words, and how many more there are."""
    more = f"{separator}and {len(items) - limit:,} more" if len(items) > limit else ""
    return separator.join(map(str, items[:limit])) + more


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name most like `name`; "" if none is as similar as `cutoff`, a ratio of `difflib`."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, cutoff)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name as a question in parentheses, after a space; "" if none is near."""
    found = nearest(name, known)
    return f' (did you mean "{found}"?)' if found else ""


def on_a_line(error: BaseException) -> str:
    """An exception of another package as one line: its type, and at most 300 characters of its message."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words if len(words) <= 300 else words[:297] + '...'}"


def missing_extra(what: str, package: str, extra: str) -> UserError:
    """The error for a missing optional package; nothing is published, so it is installed from a checkout."""
    return UserError(f"{what} needs the package {package}; in a checkout of jaxvlm: pip install -e '.[{extra}]'")


_DISK = {errno.ENOSPC, errno.EDQUOT}
_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


def explained(error: BaseException) -> UserError | None:
    """The `UserError` for an exception that a user can fix; None for any other."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)) and error.filename:
        return UserError(f"{error.filename}: {error.strerror}; choose another path, or remove what is there")
    if isinstance(error, OSError) and error.errno in _DISK:
        return UserError(f"{error}; free some space and run the command again (train continues with --resume)")
    if isinstance(error, OSError) and error.errno in _PERMISSION and error.filename:
        return UserError(
            f"{error.filename}: {error.strerror}; give this user permission to read and write there, or choose another "
            "path"
        )
    return out_of_memory(error) or unknown_option(error)


def exit_code(error: BaseException) -> int:
    """The code with which a command ends after an exception: 130 after Ctrl-C, 2 after a mistake to fix, else 1."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if explained(error) is not None else 1


def unknown_option(error: BaseException) -> UserError | None:
    """The error for a compiler option that is unknown; None: `error` is another one."""
    match = re.search(r"No such compile option: '?(\w+)|[Uu]nknown (?:flag|option)[^\w]*(\w+)", str(error))
    if type(error).__name__ != "JaxRuntimeError" or not match:
        return None
    return UserError(f"the TPU compiler knows no option {match[1] or match[2]} (config.stage.NAME.compiler_options)")


def out_of_memory(error: BaseException) -> UserError | None:
    """The error for a program that is too large for a device; None: `error` is another one."""
    text = str(error)
    if type(error).__name__ != "JaxRuntimeError" or "RESOURCE_EXHAUSTED" not in text:
        return None
    reason = " ".join(text.splitlines()[0].split())[:300]
    where = "".join(f" {note}" for note in getattr(error, "__notes__", ()) if note.startswith("while "))
    return UserError(
        f"a device has too little memory{where} ({reason}); take fewer rows a device: a smaller global_batch_size, "
        "more micro_batches, more devices; for answers a smaller evaluation.batch_size (evaluate: --batch-size); or "
        'keep less, as with config.model.remat = "full"; `python -m jaxvlm.plan` tries these without the devices'
    )
