"""What a run reports: slow steps, updates that are not finite; test_small.py has more."""

import json
import signal
import socket

import jax
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.restore import load_params
from jaxvlm.runs import RunFolder
from jaxvlm.sharding import Rules, make_mesh
from tests.e2e.small_run import HOOK, NAN, finish, losses


@pytest.mark.nightly  # tests/training/test_state.py has the step
def test_an_update_that_is_not_finite_can_be_left_out(undisturbed, start, tmp_path):
    stage = "--config.stage.only"
    arguments = [f"{stage}.on_nonfinite=skip", f"{stage}.checkpoint_every=1", f"{stage}.keep_checkpoints=30"]
    log = finish(start(tmp_path, *arguments, "--config.steps=20", code=NAN.replace("STEPS", "(7,)")))
    assert "step 7 of only: loss nan" in log and "the update is left out" in log
    found = losses(tmp_path)
    np.testing.assert_allclose(found[:6], losses(undisturbed[0])[:6], rtol=1e-6)  # of another program
    assert [step for step, values in enumerate(found, 1) if not np.isfinite(values).all()] == [7]
    six, seven, eight = (params(tmp_path, step) for step in (6, 7, 8))
    assert all(map(np.array_equal, six, seven)) and not all(map(np.array_equal, seven, eight))


def params(folder, step):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return jax.tree.leaves(load_params(RunFolder(folder), RunFolder(folder).load_config(), mesh, Rules(), step=step)[0])


@pytest.mark.nightly  # tests/training/test_faults.py has the watch
def test_a_slow_step_is_reported_and_the_heartbeat_names_it(start, tmp_path):
    code = HOOK + (
        "watch._BEAT_SECONDS, watch._SLOW_SECONDS = 0.1, 0.5\n"
        "hook(lambda step, batch: time.sleep(60 if step == 12 else 0.02))\n"
    )
    child = start(tmp_path, code=code)
    line = child.wait_for(lambda: next((x for x in child.read_log().splitlines() if x.startswith("slow: step 12")), ""))
    beat = json.loads((tmp_path / "heartbeats" / "0.json").read_text())
    assert (beat["phase"], beat["step"], beat["pid"]) == ("data", 12, child.pid)
    assert "slow: step 12 has taken" in line and "times the median of" in line
    assert f"process 0 on {socket.gethostname()}: data of step 12 for" in line
    child.send(signal.SIGKILL)
    assert child.wait()[0] == -9
