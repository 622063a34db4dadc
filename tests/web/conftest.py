"""A studio whose trainings are stand-ins."""

import json
import os
import signal
import sys

import pytest

from jaxvlm.process_identity import is_alive
from jaxvlm.web import control, train_command
from tests.web.folders import make_studio, write
from tests.web.stand_in import STAND_IN


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A studio whose trainings are stand-ins; what is left of them is ended."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    (tmp_path / "recipes").mkdir()
    for name in ("mine", "deaf", "fails", "beats"):
        write(tmp_path / "recipes" / f"{name}.py", "")

    def as_stand_in(command):
        assert command[:3] == [sys.executable, "-m", "jaxvlm.train"]
        return [sys.executable, "-S", str(script), "jaxvlm.train", *command[3:]]

    def resume(studio, run):
        command, problem = train_command.resume_command(studio, run)
        return as_stand_in(command) if command else command, problem

    monkeypatch.setattr(control, "train_command", lambda *given: as_stand_in(train_command.train_command(*given)))
    monkeypatch.setattr(control, "resume_command", resume)
    monkeypatch.setattr(control, "check_recipe", lambda *_: None)
    monkeypatch.setattr(control, "gpus", lambda: [0, 1, 2, 3])
    made = make_studio(tmp_path)
    yield made
    for file in made.root.rglob("studio.json"):
        launcher = json.loads(file.read_text())["launcher"] or {}
        child = launcher.get("child") or {}
        if is_alive(child) and child["pid"] != os.getpid():
            os.killpg(child["pid"], signal.SIGKILL)
