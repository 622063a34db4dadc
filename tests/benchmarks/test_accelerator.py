"""The benchmark of accelerators: its arithmetic, what it does when a model does not fit, a rehearsal on the CPU."""

import json
import math

import jax
import pytest

from tests.benchmarks.accelerator import __main__ as command
from tests.benchmarks.accelerator.measurements import MEASUREMENTS, make_batches, make_config
from tests.benchmarks.accelerator.peaks import find_peak
from tests.benchmarks.accelerator.process import OutOfMemoryError, OutOfTimeError, WorkerError
from tests.benchmarks.accelerator.trace import Event, read_jax_trace, shares
from tests.xla import LEVEL


def numbers_of(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)]


def test_shares_of_a_trace():
    events = [
        Event("a", "while", 0.0, 10.0),  # with 2 s of its own, for it contains the next three
        Event("a", "gemm_fusion_dot_3", 0.0, 4.0),
        Event("a", "cudnn flash_fwd", 4.0, 6.0),
        Event("a", "loop_add_fusion", 6.0, 8.0),
        Event("b", "ncclDevKernel_AllGather", 8.0, 20.0),
    ]
    found = shares(events)
    assert found == pytest.approx(
        {"collectives": 12 / 22, "products": 4 / 22, "other": 4 / 22, "attention": 2 / 22, "idle": 0}
    )
    assert list(found)[0] == "collectives"
    assert shares([Event("a", "copy.1", 0.0, 1.0), Event("a", "copy.2", 3.0, 4.0)])["idle"] == 0.5
    assert shares([]) == {}


def test_a_trace_of_jax_is_read(tmp_path):
    a = jax.numpy.ones((256, 256))
    run = jax.jit(lambda a: jax.nn.silu(a @ a))
    run(a).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        run(a).block_until_ready()
    found = shares(read_jax_trace(str(tmp_path)))
    assert 0 <= found.pop("idle") < 1 and math.isclose(sum(found.values()), 1)


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312)]
    + [("NVIDIA L4", 121), ("NVIDIA GeForce RTX 4090", 165.2), ("TPU v5 lite", 197), ("TPU v5", 459)],
)
def test_peaks(kind, tflops):
    assert find_peak(kind).flops == pytest.approx(tflops * 1e12)


def test_a_device_without_a_known_peak():
    assert find_peak("NVIDIA L400") is None


@pytest.mark.parametrize("name", ["lora", "finetune", "align"])
def test_batches_have_the_same_samples_in_rows_of_the_recipe(name):
    measurement, rows = MEASUREMENTS[name], 2
    config = make_config(measurement, tiny=True)
    (stage,) = config.stage.values()
    for kind in measurement.kinds:
        made = make_batches(measurement, config, kind, rows)
        assert all(batch.tokens.shape == (rows, stage.data.tokens) for batch in made.packed)
        assert sum(int((batch.segments > 0).sum()) for batch in made.packed) == made.tokens
        assert sum(batch.segments.max(axis=1).sum() for batch in made.packed) == len(made.pieces)
        if kind == "full":
            assert all((batch.segments == 1).all() for batch in made.packed)
        work = made.work(rows)
        assert work.tokens * rows * len(made.packed) == pytest.approx(made.tokens)


class FakeWorker:
    """In place of a process: `fits` says which settings do."""

    fits = staticmethod(lambda side, setting: True)
    fails = staticmethod(lambda side, what: None)
    alive: dict = {}

    def __init__(self, side, deadline, log):
        self.side = side
        FakeWorker.alive[side] = self

    def ask(self, what, **values):
        if error := self.fails(self.side, what):
            raise error
        if what == "describe":
            return {"platform": "cpu", "kind": "cpu", "devices": 1, "versions": {}}
        if what == "build":
            if not self.fits(self.side, values["setting"]):
                raise OutOfMemoryError("RESOURCE_EXHAUSTED: no room")
            sizes = {"tokens": 100, "samples": 2, "steps": 1, "positions": 128, "flops": 1e6}
            kinds = dict.fromkeys(MEASUREMENTS[values["measurement"]].kinds, sizes)
            return {"parameters": 5, "trained": 1, "devices": 1, "kinds": kinds, "compile_seconds": 1.0}
        if what == "run":
            runs = {"seconds": 0.5 if self.side == "jaxvlm" else 1.0, "loss": 1.0}
            return [runs] * values["count"]
        return {"trace": {"products": 1.0}, "peak": 2.0**30, "matmul": 1e9}[what]

    def close(self):
        FakeWorker.alive.pop(self.side, None)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "alive", {})

    def run(*names, fits=lambda side, setting: True, fails=lambda side, what: None):
        monkeypatch.setattr(FakeWorker, "fits", staticmethod(fits))
        monkeypatch.setattr(FakeWorker, "fails", staticmethod(fails))
        results = command.main(["--out", str(tmp_path), "--rounds", "2", "--only", *names])
        assert FakeWorker.alive == {}
        return results, json.loads((tmp_path / "results.json").read_text())

    return run


@pytest.mark.torch
def test_the_next_smaller_setting_follows_one_that_does_not_fit(fake):
    results, saved = fake(
        "lora", fits=lambda side, setting: setting["rows"] < 4 and setting["remat"] == "full" or side != "jaxvlm"
    )
    assert results.row("lora", "full", "jaxvlm")["setting"] == {"rows": 2, "remat": "full", "checkpointing": True}
    assert sum("does not fit" in note for note in saved["notes"]) == 3
    assert {row["side"] for row in saved["rows"]} >= {"jaxvlm", "transformers"}
    assert "2.00" in results.table()  # their second over our half


@pytest.mark.torch
def test_sides_that_do_not_fit_at_once_are_measured_one_after_the_other(fake):
    results, saved = fake("lora", fits=lambda side, setting: side == "jaxvlm" or "jaxvlm" not in FakeWorker.alive)
    assert any("one after the other" in note for note in saved["notes"])
    for side in ("jaxvlm", "transformers"):
        assert len(results.row("lora", "data", side)["seconds"]) >= 2


def test_a_failure_is_named_and_the_others_go_on(fake):
    broken = iter([WorkerError("no such kernel")])

    def fails(side, what):
        return next(broken, None) if what == "build" else None

    results, saved = fake("lora", "align", fails=fails)
    assert any("lora: no such kernel" in note for note in saved["notes"])
    assert results.row("align", "full", "jaxvlm")["seconds"]


def test_what_was_measured_is_kept_when_the_minutes_are_over(fake):
    asked = []

    def fails(side, what):
        asked.append(what)
        return OutOfTimeError("over") if asked.count("trace") == 1 else None

    _, saved = fake("align", "lora", fails=fails)
    assert any("minutes are over" in note for note in saved["notes"])
    assert [row["measurement"] for row in saved["rows"]] == ["align"] and saved["rows"][0]["tokens_per_second"] > 0


@pytest.mark.nightly
def test_rehearsal(tmp_path):
    """The real processes, with the tiny models of a CPU."""
    results = command.main(["--out", str(tmp_path), "--rounds", "1", "--alone", "--only", "align"])
    (row,) = results.rows
    assert all(math.isfinite(number) for number in numbers_of(json.loads((tmp_path / "results.json").read_text())))
    assert row["seconds"] and row["compile_seconds"] > 0 and row["trace"]
    assert "no accelerator" in results.notes[1]


@pytest.mark.nightly
@pytest.mark.torch
def test_rehearsal_beside_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", LEVEL)  # one device, as torch uses
    results = command.main(["--out", str(tmp_path), "--rounds", "1", "--minutes", "9"])
    sides = {(row["measurement"], row["side"]) for row in results.rows if row["seconds"]}
    assert sides >= {(name, side) for name in MEASUREMENTS for side in ("jaxvlm", "transformers")}, results.notes
    assert ("lora", "transformers, torch.compile") in sides, results.notes
    assert not [note for note in results.notes if "differ" in note], results.notes
