"""A plan for this machine: memory by its own compiler, and no estimate of time."""

import dataclasses

import jax
import pytest

from jaxvlm.command import run
from jaxvlm.plan import main
from jaxvlm.planning import here
from jaxvlm.planning.here import plan_here
from jaxvlm.planning.report import Assumptions, table, to_json, what_would_help
from jaxvlm.planning.slices import larger_slice
from tests import tiny


@pytest.fixture(scope="module")
def plan():
    stage = tiny.stage_recipe()
    stage.data.update(tokens=31)
    stage.data.media.units = 2
    return plan_here(tiny.config(tiny.recipe(only=stage)), "only", Assumptions())


@pytest.mark.nightly
def test_memory_and_no_time(plan):
    found = to_json(plan)
    memory = found["memory_bytes"]
    assert found["fits"] and "estimate" not in found and found["slice"]["name"] == "here"
    assert memory["limit"] > memory["needed"] > memory["trained"] + memory["optimizer"] > 0
    assert "cpu" in table(plan) and "a run shows it after its first steps" in table(plan)


@pytest.mark.nightly
def test_what_would_help_here(plan):
    memory = dataclasses.replace(plan.compiled.memory, limit=1.0)
    full = dataclasses.replace(plan, compiled=dataclasses.replace(plan.compiled, memory=memory))
    assert not to_json(full)["fits"]
    assert what_would_help(full) and not any("--topology" in way for way in what_would_help(full))


def test_this_machine_as_a_slice():
    found = here.this_machine()
    assert found.devices() == jax.devices() and found.num_chips == len(jax.devices())
    assert found.chip.hbm_bytes <= here.available_memory() * 2 // found.num_chips
    assert larger_slice(found) is None


def test_available_memory(tmp_path, monkeypatch):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  100 kB\nMemAvailable:      30 kB\n")
    monkeypatch.setattr(here, "_MEMINFO", file)
    assert here.available_memory() == 30 * 1024
    monkeypatch.setattr(here, "_MEMINFO", tmp_path / "no")
    assert here.available_memory() > 2**20


def test_no_search(capsys):
    assert run(main, ["--config", "configs/quickstart.py", "--topology", "here", "--search"]) == 2
    assert "--search" in capsys.readouterr().err
