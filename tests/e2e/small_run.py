"""Runs of the recipes small.py and small_text.py: how they are hooked into, and what they leave."""

import os
from pathlib import Path

from jaxvlm.training.metrics import read_metrics

RECIPE, TEXT_RECIPE = (str(Path(__file__).with_name(name)) for name in ("small.py", "small_text.py"))

# Calls `before(step, batch)` when a step's batch is about to go to the device; it may return another batch.
HOOK = """
import dataclasses, resource, time
import numpy as np
from jaxvlm.training import loop, watch

def hook(before, place=loop.to_devices, calls=[]):
    def to_devices(batch, *arguments):
        calls.append(1)
        return place(before(len(calls), batch) or batch, *arguments)
    loop.to_devices = to_devices
"""

# A weight of a token that is not a number makes loss and gradients so, in the device's own arithmetic.
NAN = (
    HOOK
    + """
def before(step, batch):
    if step in STEPS:
        np.save(f"{job['arguments'][3]}/tokens-{step}.npy", batch.tokens)
        return batch._replace(loss_weights=np.full_like(batch.loss_weights, np.nan))
hook(before)
"""
)


def finish(child):
    code, log = child.wait()
    assert code == 0, log[-3000:]
    return log


def losses(folder):
    """Loss and gradient norm of all steps; each step has one line."""
    lines = [m for m in read_metrics(folder / "metrics.jsonl") if "loss" in m]
    assert [m["step"] for m in lines] == list(range(1, len(lines) + 1))
    return [(m["loss"], m["gradient_norm"]) for m in lines]


def last_step(folder):
    return max((m["step"] for m in read_metrics(folder / "metrics.jsonl")), default=0)


def checkpoints(folder):
    return folder / "checkpoints" / "only"


def halves(folder):
    """Checkpoints that were begun and not finished."""
    return list(checkpoints(folder).glob("*.orbax-checkpoint-tmp*"))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def scramble(path):
    path.write_bytes(bytes(path.stat().st_size))


def finish_all(processes):
    """What each process printed; all of them end well."""
    codes, logs = processes.wait()
    assert set(codes) == {0}, "\n".join(log[-2500:] for log in logs)
    return logs


def arguments(folder, *more, recipe=TEXT_RECIPE):
    return ("--config", recipe, "--workdir", folder, *more)
