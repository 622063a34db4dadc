"""The order in which the train loop calls its services."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import jax.numpy as jnp

from jaxvlm.config import MeshConfig
from jaxvlm.sharding import make_mesh
from jaxvlm.training import loop
from jaxvlm.training.metrics import Writer, read_metrics


def test_a_step_is_timed_before_its_evaluations(tmp_path, monkeypatch, capsys):
    """Its rate is that of training: the evaluation that follows it may take minutes."""

    def step(state, batch):
        return SimpleNamespace(step=state.step + 1), {"loss": jnp.ones(()), "tokens": jnp.full((), 7.0)}

    monkeypatch.setattr(loop, "compile_train_step", lambda *_: step)
    monkeypatch.setattr(loop, "to_devices", lambda batch, *_: batch)
    path, written = tmp_path / "metrics.jsonl", []

    def evaluate(state):
        written.append([(line["step"], "step_seconds" in line) for line in read_metrics(path)])
        return {"heldout_loss": 2.0}

    services = MagicMock(writer=Writer(path, tmp_path / "tensorboard", "only", first_step=0, steps=3))
    services.preemption.reached = lambda step: False
    stage = SimpleNamespace(log_every=1, checkpoint_every=9)
    layout = SimpleNamespace(mesh=make_mesh(MeshConfig(data=8, fsdp=1, tensor=1)), rules=None)
    loop.train(layout, stage, 3, SimpleNamespace(step=0), MagicMock(), [(2, evaluate), (0, evaluate)], services)
    services.writer.close()
    assert written == [[(1, True), (2, True)], [(1, True), (2, True), (2, False), (3, True)]]
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 2, 3, 3]
    assert "only 3: heldout_loss 2.0000" in capsys.readouterr().out
