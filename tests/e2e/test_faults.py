"""What a run reports: trace, shares of the time, slow steps, losses that are not finite."""

import json
import signal
import socket
from pathlib import Path

import jax
import numpy as np

from jaxvlm.config import MeshConfig
from jaxvlm.restore import load_params
from jaxvlm.runs import RunFolder
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.training.checkpoint import whole_steps
from tests.e2e.small_run import HOOK, checkpoints, finish, losses


def test_a_run_leaves_a_trace_and_says_where_the_time_went(undisturbed):
    folder, log = undisturbed
    assert f"profile of steps 2 to 3: {folder / 'profile' / 'only'}" in log
    assert list((folder / "profile" / "only").rglob("*.xplane.pb"))
    for what in ("waiting for data", "compiling", "saving", "evaluating"):
        assert f"% {what}" in log.splitlines()[-1]
    beat = json.loads((folder / "heartbeats" / "0.json").read_text())
    assert (beat["phase"], beat["step"], beat["host"]) == ("done", 20, socket.gethostname())


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


def test_losses_that_are_not_finite_stop_a_run(undisturbed, environment, start, tmp_path):
    code, log = start(tmp_path, code=NAN.replace("STEPS", "range(9, 99)")).wait()
    assert code == 2, log[-3000:]
    assert "not finite in 3 steps in a row, the last is step 11 of only" in log and "on_nonfinite=skip" in log
    assert "Traceback" not in log
    assert whole_steps(checkpoints(tmp_path)) == [5]  # not 10
    known = {record["id"] for record in json.loads(Path(environment["JAXVLM_TEST_DATA"]).read_text())}
    folders = [tmp_path / "nonfinite" / f"only-{step}" for step in (9, 10, 11)]
    assert sorted((tmp_path / "nonfinite").iterdir()) == sorted(folders)
    for step, folder in zip((9, 10, 11), folders, strict=True):
        assert str(folder) in log
        arrays = np.load(folder / "process-0.npz")
        np.testing.assert_array_equal(arrays["tokens"], np.load(tmp_path / f"tokens-{step}.npy"))
        rows = json.loads((folder / "process-0.json").read_text())
        ids = [record["id"] for row in rows for record in row]
        assert len(rows) == 8 and ids and set(ids) <= known
        with_images = [i for i, row in enumerate(rows) if any(record["images"] for record in row)]
        assert sorted(folder.glob("*.png")) == sorted(folder / f"process-0-row-{i}.png" for i in with_images)
    # Mended, it goes on from the last save.
    assert "resumed at step 5 of 20" in finish(start(tmp_path, "--resume"))
    assert losses(tmp_path) == losses(undisturbed[0])


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
