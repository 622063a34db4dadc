import dataclasses
import math
import shlex

import pytest

from jaxvlm.planning.compiler import TPU_ENVIRONMENT, Compiled, Memory
from jaxvlm.planning.estimate import Estimate
from jaxvlm.planning.program import build_step
from jaxvlm.planning.report import Assumptions, Plan, work_of
from jaxvlm.planning.search import Candidate, Found, _with_units, search
from jaxvlm.planning.slices import GIB, find_slice
from tests import tiny

pytestmark = pytest.mark.tpu_compiler


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in TPU_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def config():
    stage = tiny.stage_recipe()
    stage.data.media.units = 2
    return tiny.config(tiny.recipe(only=stage))


def fake_plan(config, stage, on, assumed, cache, *, size=1.0):
    """A world in which rows take 4 GiB, or 2 recomputed, and time falls with rows and with what is kept."""
    step = build_step(config, stage, on)
    rows, full = step.rows_per_chip / step.stage.micro_batches, config.model.remat == "full"
    memory = Memory(size * rows * (2 if full else 4) * GIB, 16 * GIB, 0, 0, 0, 0, 0, 0, 0)
    seconds = step.rows_per_chip * (1.0 if full else 0.8) + 0.1 * step.stage.micro_batches
    seconds -= 0.05 * bool(step.stage.compiler_options)
    work = work_of(step, assumed)
    return Plan(step, Compiled(memory, "", 0, False), work, (), Estimate(compute=seconds), assumed)


def run(config, *, minutes=1.0, size=1.0):
    """A search whose every plan takes three seconds of a clock of its own."""
    now = 0.0

    def plan(*arguments):
        nonlocal now
        now += 3.0
        return fake_plan(*arguments, size=size)

    on = find_slice("v5e-4")
    return search(
        config, "only", on, Assumptions(), minutes=minutes, cache=None, show=print, plan=plan, clock=lambda: now
    )


def test_the_frontier_is_smaller_or_faster(config):
    found = run(config)
    frontier = found.frontier()
    sizes = [plan.compiled.memory.needed for _, plan in frontier]
    times = [plan.estimate.seconds / plan.step.rows_per_chip / plan.work.samples for _, plan in frontier]
    assert len(frontier) > 1 and sizes == sorted(sizes) and times == sorted(times, reverse=True)
    assert all(size <= 16 * GIB for size in sizes)
    fastest = frontier[-1][0]
    assert fastest.remat != "full" and fastest.options
    assert "--config.model.remat=" in found.table() and "is another training" in found.table()
    assert [x["overrides"] for x in found.to_json()["frontier"]] == [c.overrides(config, "only") for c, _ in frontier]


def test_without_time_only_the_recipe_is_planned(config):
    found = run(config, minutes=0)
    assert len(found.plans) == 1 and "(the recipe)" in found.table()


def test_no_plan_is_begun_after_the_time(config):
    assert len(run(config, minutes=0.2).plans) == 4


def test_a_recipe_that_does_not_fit_is_made_smaller(config):
    recipe = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    found = run(recipe, size=3.0)
    first = next(iter(found.plans.values()))
    assert not first.compiled.memory.fits and found.frontier()


def test_nothing_fits(config):
    found = run(config, size=100.0)
    assert not found.frontier() and "fits" in found.table() and found.to_json()["frontier"] == []


def test_overrides_are_only_what_differs(config):
    same = Candidate(2, 1, config.model.remat, (1, 4, 1), "", 2)
    assert same.overrides(config, "only") == "(the recipe)"
    other = Candidate(6, 2, "dots", (1, 2, 2), "a=1 b=2", 3)
    assert shlex.split(other.overrides(config, "only")) == [
        "--config.model.remat=dots",
        "--config.mesh.fsdp=2",
        "--config.mesh.tensor=2",
        "--config.stage.only.global_batch_size=12",
        "--config.stage.only.micro_batches=2",
        "--config.stage.only.compiler_options=a=1 b=2",
        "--config.stage.only.data.media.units=3",
    ]


def test_neighbours_are_others_and_keep_the_batch_whole():
    candidate = Candidate(6, 2, "full", (1, 4, 1), "", 2)
    near = list(candidate.neighbours(kv_heads=4))
    assert candidate not in near and len(set(near)) == len(near)
    assert all(c.rows_per_chip % c.micro_batches == 0 and math.prod(c.mesh) == 4 for c in near)
    assert Candidate(6, 6, "dots", (1, 4, 1), "", 2) in near  # a row at a time
    assert {c.units for c in near} == {1, 2, 3}
    assert {c.units for c in Candidate(1, 1, "full", (1, 4, 1), "", 12288).neighbours(1)} == {10752, 12288, 13824}
    assert {c.units for c in Candidate(1, 1, "full", (1, 4, 1), "", 0).neighbours(1)} == {0}  # of text alone


def test_a_found_plan_can_be_empty(config):
    assert Found(config, "only", {}).frontier() == []


@pytest.mark.parametrize(
    ("assumed", "units", "expected"),
    [
        # Patches bind: with half of them, half of the samples. More of them hold no more where tokens bind.
        (Assumptions(samples_per_row=4, units_per_row=2, filled=0.5), 1, (2, 1, 0.25)),
        (Assumptions(samples_per_row=4, units_per_row=2, filled=0.5), 3, (6, 3, 0.75)),
        (Assumptions(samples_per_row=4, units_per_row=2, filled=0.5), 9, (8, 4, 1.0)),
        (Assumptions(samples_per_row=4, units_per_row=1, filled=1.0), 1, (4, 1, 1.0)),
    ],
)
def test_rows_of_other_units_hold_the_same_samples(config, assumed, units, expected):
    start = build_step(config, "only", find_slice("v5e-4"))
    found = _with_units(assumed, start, units)
    assert (found.samples_per_row, found.units_per_row, found.filled) == pytest.approx(expected)
    assert found.supervised == pytest.approx(work_of(start, assumed).supervised * found.samples_per_row / 4)
    assert _with_units(assumed, start, config.stage["only"].data.media.units) is assumed
