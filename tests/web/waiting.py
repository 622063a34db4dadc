"""Waits for what another process does."""

import time

LONGEST = 120.0  # seconds; far more than anything takes on a busy machine


def wait_for(condition, longest=LONGEST, every=0.02):
    """Returns when `condition()` is true; it is looked at each `every` seconds."""
    end = time.monotonic() + longest
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(every)
