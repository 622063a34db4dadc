"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(
    desc: str, total: int, unit: str, *, initial: int = 0, show: bool = True, delay: float = 1.0, scaled: bool = False
) -> tqdm:
    """A bar on standard error, on a terminal and in a file alike: logs of pods and the studio read it there.

    Args:
      desc: what is done.
      total: how many units it takes.
      unit: their name, in the singular.
      initial: how many of them an earlier run did.
      show: whether this process shows it.
      delay: seconds of work before it appears, so that what is done at once says nothing.
      scaled: whether large counts are shown as 1.2k or 1.2M.
    """
    return tqdm(
        desc=desc,
        total=total,
        unit=unit,
        initial=initial,
        disable=not show,
        delay=delay,
        unit_scale=scaled,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 1.0,  # a file keeps every line
    )
