"""What was computed once of data that has not changed: arrays, kept on disk under a hash of all they depend on."""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from collections.abc import Callable

import numpy as np

from jaxvlm.files import cache_folder, replace_bytes

KEEP_SECONDS = 2.0  # what takes less is not worth a file


Arrays = dict[str, np.ndarray]


def cached_arrays(
    kind: str, key: str, make: Callable[[], Arrays], *, holds: Callable[[Arrays], bool] = lambda _: True
) -> Arrays:
    """The arrays that were kept under `key`, or those that `make` gives, which are then kept if making took long.

    A file that is damaged counts as none, and a cache that cannot be written as none either.

    Args:
      kind: name of the folder in the cache.
      key: a hash of everything the arrays depend on.
      make: works them out.
      holds: whether cached arrays are still valid, for what they depend on besides `key`.
    """
    path = cache_folder() / kind / f"{key}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), path.open("rb") as file:
        saved = np.load(file, allow_pickle=False)
        kept = {name: saved[name] for name in saved.files}
        if holds(kept):
            return kept
    began = time.monotonic()
    arrays = make()
    if time.monotonic() - began >= KEEP_SECONDS:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **arrays)
            replace_bytes(path, content.getvalue())
    return arrays
