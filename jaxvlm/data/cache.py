"""Cache of arrays on disk, each under a hash of everything it depends on."""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from collections.abc import Callable

import numpy as np

from jaxvlm.files import cache_folder, replace_bytes

KEEP_SECONDS = 2.0  # results that take less time are not cached


Arrays = dict[str, np.ndarray]


def forget(kind: str, key: str) -> None:
    """Removes what is cached under `key`, if anything is."""
    with contextlib.suppress(OSError):
        (cache_folder() / kind / f"{key}.npz").unlink()


def cached_arrays(
    kind: str, key: str, make: Callable[[], Arrays], *, holds: Callable[[Arrays], bool] = lambda _: True
) -> Arrays:
    """Returns the arrays cached under `key`, or those of `make`, which are cached if that took long.

    A corrupt file counts as absent; a cache that cannot be written is not used.

    Args:
      kind: name of the folder in the cache.
      key: a hash of everything the arrays depend on.
      make: computes them.
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
