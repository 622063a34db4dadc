import dataclasses
import functools
import json
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import pytest

from jaxvlm import plan
from jaxvlm.command import load_config, run
from jaxvlm.errors import UserError
from jaxvlm.planning import compiler
from jaxvlm.planning.compiler import compile_step, parse_out_of_memory, read_allocated
from jaxvlm.planning.program import build_step
from jaxvlm.planning.report import Assumptions, make_plan, table, to_json, what_would_help
from jaxvlm.planning.slices import GIB, find_slice
from jaxvlm.training import loop
from jaxvlm.training.step import compile_train_step
from tests import tiny

tpu_compiler = pytest.mark.tpu_compiler

# What libtpu 0.0.42 said of LLaVA-1.5-7B at 3 rows a chip of v5e-16, with most of its list of allocations cut out.
MESSAGE = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. \
Ran out of memory in memory space hbm. Used 15.80G of 15.75G hbm. Exceeded hbm capacity by 49.12M.

Total hbm usage >= 16.05G:
    reserved        258.01M
    program          11.02G
    arguments         4.77G

Output size 4.77G; shares 4.77G with arguments.

Program hbm requirement 11.02G:
    global            1.00M
    HLO temp         10.95G (99.9% utilization: Unpadded (7.85G) Padded (7.86G), 28.3% fragmentation (3.09G))

  Largest program allocations in hbm:

  1. Size: 2.02G
     Operator: op_name="jit(train_step)/transpose(jvp())/while/body/dot_general"
     Shape: bf16[48,2048,11008]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 2.02G
     XLA label: all-reduce.156 = all-reduce(fusion.1031), channel_id=33
     Allocation type: HLO temp
     ==========================

  2. Size: 344.00M
     Shape: f32[32,256,11008]{2,1,0:T(8,128)}
     XLA label: Argument 64 index {}
     ==========================

"""


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in compiler.TPU_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.py"
    path.write_text(
        "from tests import tiny\n"
        "def get_config():\n"
        "    stage = tiny.stage_recipe()\n"
        "    stage.parts.vision = 'frozen'\n"
        "    stage.data.tokens, stage.data.media.units = 128, 2\n"
        "    return tiny.recipe(only=stage)\n"
    )
    return str(path)


@functools.cache
def tiny_step(name="v5e-4", **changes):
    stage = tiny.stage_recipe()
    stage.parts.vision = "frozen"
    stage.data.tokens, stage.data.media.units = 128, 2
    stage.update(changes)
    return build_step(tiny.config(tiny.recipe(only=stage)), "only", find_slice(name))


def fail(lowered, dump):
    raise RuntimeError(MESSAGE)


def test_a_message_of_the_compiler():
    found = parse_out_of_memory(MESSAGE)
    assert found["limit"] == 15.75 * GIB and found["needed"] == 15.75 * GIB + 49.12 * 2**20
    assert found["arguments"] == 4.77 * GIB and found["program"] == 11.02 * GIB
    assert found["largest"] == ["2.02GiB  bf16[48,2048,11008]  transpose(jvp())/while/body/dot_general"]


def test_the_last_report_of_what_is_allocated(tmp_path):
    assert read_allocated(tmp_path) is None
    for number, size in ((0, 100), (3, 60)):
        text = (
            f"Memory Space: default (color=0)\nTotal bytes: {size} (1B)\n\nMemory Space: vmem (color=1)\nTotal bytes: 7"
        )
        (tmp_path / f"module_000{number}.jit_step.after-memory-usage-report.txt").write_text(text)
    assert read_allocated(tmp_path) == 60


def test_its_short_form():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (512.00G) "
        "exceeds available HBM (31.25G)."
    )
    found = parse_out_of_memory(message)
    assert (found["needed"], found["limit"], found["largest"]) == (512 * GIB, 31.25 * GIB, [])


@tpu_compiler
def test_out_of_memory_is_an_answer():
    compiled = compile_step(tiny_step(), compiler=fail)
    found = make_plan(tiny_step(), compiled, Assumptions())
    assert not compiled.memory.fits and found.estimate is None and found.mfu is None
    said = table(found)
    assert "does NOT fit, by 0.05 GiB" in said and "2.02GiB  bf16[48,2048,11008]" in said
    for way in ("micro_batches=2", "global_batch_size=4", "parts.language=lora", "--topology v5e-8"):
        assert any(way in help for help in what_would_help(found)), way
    assert to_json(found)["memory_bytes"]["free"] == pytest.approx(-49.12 * 2**20)


@tpu_compiler
def test_out_of_memory_is_exit_code_3(monkeypatch, recipe_file, tmp_path, capsys):
    monkeypatch.setattr(compiler, "compile_lowered", fail)
    argv = ["--config", recipe_file, "--topology", "v5e-4", "--json", "--cache", str(tmp_path)]
    assert run(plan.main, argv) == 3
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["fits"] is False and result["what_would_help"]
    assert run(plan.main, argv) == 3  # from the cache


@tpu_compiler
def test_another_memory_that_is_too_small_is_no_plan():
    def fail(lowered, dump):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. It should\n not be possible")

    with pytest.raises(UserError, match="memory space vmem. It should not be possible; try another config.model.remat"):
        compile_step(tiny_step(), compiler=fail)


@tpu_compiler
def test_the_plan_of_a_tiny_recipe(recipe_file, tmp_path, capsys):
    argv = ["--config", recipe_file, "--topology", "v5e-4", "--json", "--cache", str(tmp_path)]
    argv += ["--records", "1000", "--samples-per-row", "2", "--price-per-chip-hour", "2.5"]
    assert run(plan.main, argv) == 0
    *said, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert any("an estimate" in line for line in said) and any("fits" in line for line in said)
    assert result["slice"]["chips"] == 4 and result["mesh"]["fsdp"] == 4 and result["rows_per_chip"] == 2
    memory, estimate, after = result["memory_bytes"], result["estimate"], result["run"]
    assert result["fits"] and 0 < memory["trained"] < memory["optimizer"] == pytest.approx(
        2 * memory["trained"], rel=0.1
    )
    assert memory["is_exact"]
    parts = ("trained", "frozen", "optimizer", "batch", "padding", "temporaries", "code")
    assert sum(memory[name] for name in parts) == pytest.approx(memory["needed"])
    assert memory["needed"] + memory["free"] == memory["limit"] == 15.75 * GIB
    spent = estimate["compute_seconds"] + estimate["other_seconds"] + estimate["exposed_collective_seconds"]
    assert estimate["step_seconds"] == pytest.approx(spent + sum(estimate["kernel_seconds"].values()))
    assert estimate["compute_seconds"] > 0 and not estimate["unknown_kernels"]
    assert {x["axis"] for x in estimate["collectives"]} == {"fsdp"}
    assert 0 < estimate["mfu"] < 1
    assert after["steps"] == math.ceil(1000 / 16) and after["cost"] == pytest.approx(2.5 * after["chip_hours"])
    assert after["tokens_per_second"] == pytest.approx(8 * 128 / estimate["step_seconds"])

    assert run(plan.main, argv) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["cached"] and not result["cached"]
    assert again | {"cached": False} == result


@tpu_compiler
def test_the_cache_tells_programs_and_options_apart(tmp_path):
    compiled = []

    def count(lowered, dump):
        compiled.append(lowered)
        raise RuntimeError(MESSAGE)

    for number, changes in enumerate(({}, {"compiler_options": "a=1"}, {"global_batch_size": 4}), 1):
        compile_step(tiny_step(**changes), cache=tmp_path, compiler=count)
        assert compile_step(tiny_step(**changes), cache=tmp_path, compiler=count).cached
        assert len(compiled) == number
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert not compile_step(tiny_step(), cache=tmp_path, compiler=count).cached


def test_the_program_of_a_plan_is_that_of_a_run(monkeypatch):
    stage = tiny.stage_recipe()
    stage.on_nonfinite, stage.micro_batches, stage.global_batch_size = "skip", 2, 16
    step = build_step(tiny.config(tiny.recipe(only=stage)), "only", find_slice("v5e-8"))
    ours, planned = [], []

    def compiler_of_run(layout, *arguments, **options):
        ours.append(compile_train_step(layout, *arguments, **options).lower(layout.state, step.batch).as_text())

    monkeypatch.setattr(loop, "compile_train_step", compiler_of_run)
    loop.train(step.layout, step.stage, 0, SimpleNamespace(step=0), MagicMock(), MagicMock(), MagicMock())

    def compile_plan(lowered, dump):
        planned.append(lowered.as_text())
        raise InterruptedError

    with pytest.raises(InterruptedError):
        compile_step(step, compiler=compile_plan)
    assert ours == planned
    # The gradients of a micro-batch, at once: without, TPUs' compiler moves sums over chips out of the loop, and fails.
    barriers = [line for line in planned[0].splitlines() if "optimization_barrier" in line]
    assert max(line.count("%") for line in barriers) > len(jax.tree.leaves(step.layout.state.trained))
    compiler_of_run(step.layout, dataclasses.replace(step.stage, on_nonfinite="stop"))
    assert ours[0] != ours[1]


@tpu_compiler
def test_rows_must_divide():
    with pytest.raises(UserError, match="global_batch_size 8 does not divide.*only.global_batch_size=16"):
        tiny_step("v5e-16")


@tpu_compiler
def test_between_slices_goes_data():
    with pytest.raises(UserError, match="--config.mesh.data=2"):
        tiny_step("2xv5e-4")
    recipe = tiny.recipe(only=tiny.stage_recipe())
    recipe.mesh.data = 2
    mesh = build_step(tiny.config(recipe), "only", find_slice("2xv5e-4")).layout.mesh
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert [len({d.slice_index for d in row.flat}) for row in mesh.devices] == [1, 1]


@tpu_compiler
def test_an_option_that_the_compiler_does_not_know():
    with pytest.raises(UserError, match="xla_no_such_option"):
        compile_step(tiny_step("v5e-1", compiler_options="xla_no_such_option=1"))


@pytest.mark.nightly  # test_the_program_of_a_plan_is_that_of_a_run has the barrier
@tpu_compiler
def test_micro_batches_on_several_chips():
    """The compiler tried to put off sums over chips until all were accumulated, and failed."""
    model = "--config.model."
    small = [f"{model}language.{x}" for x in ("num_layers=2", "embed_dim=256", "num_heads=2", "num_kv_heads=2")]
    small += [f"{model}language.mlp_dim=512", f"{model}language.vocab_size=512"]
    small += [f"{model}vision.{x}" for x in ("num_layers=2", "embed_dim=128", "mlp_dim=256", "num_heads=2")]
    small += [f"{model}vision.image_size=56", "--config.stage.finetune.data.tokens=128"]
    small += ["--config.stage.finetune.compiler_options=xla_tpu_scoped_vmem_limit_kib=16384"]
    config = load_config("configs/llava15_7b_finetune.py", [*small, "--config.stage.finetune.micro_batches=2"])
    assert compile_step(build_step(config, "finetune", find_slice("v5e-8"))).memory.fits


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--stage=other", "has the stages only"),
        ("--config.stage.only.compiler_options=flag a=1", "flag; expected NAME=VALUE"),
        ("--topology=v5e-3", "known: v5e-1"),
    ],
)
def test_mistakes(argument, message, recipe_file):
    with pytest.raises(UserError, match=message):
        plan.main(["--config", recipe_file, "--topology", "v5e-4", argument])
