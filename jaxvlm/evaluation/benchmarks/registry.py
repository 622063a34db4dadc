"""Benchmarks by name. Other names are classes of modules, such as "my_package.my_file.MyBenchmark"."""

from __future__ import annotations

import importlib

from jaxvlm.errors import UserError, did_you_mean
from jaxvlm.evaluation.benchmarks.benchmark import Benchmark

_HERE = "jaxvlm.evaluation.benchmarks"
BENCHMARKS = {
    "vqav2": "vqav2.VqaV2",
    "gqa": "gqa.Gqa",
    "textvqa": "textvqa.TextVqa",
    "vizwiz": "vizwiz.VizWiz",
    "scienceqa": "scienceqa.ScienceQa",
    "pope": "pope.Pope",
    "mme": "mme.Mme",
    "mmbench": "mmbench.MmBench",
    "seedbench": "seedbench.SeedBench",
    "mmmu": "mmmu.Mmmu",
    "chartqa": "chartqa.ChartQa",
    "docvqa": "docvqa.DocVqa",
    "infovqa": "infovqa.InfoVqa",
    "ocrbench": "ocrbench.OcrBench",
    "coco_captions": "coco_captions.CocoCaptions",
    "own": "own.OwnFile",
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name in the table, or of a class's path.

    Raises:
      UserError: there is no such benchmark.
    """
    path = f"{_HERE}.{BENCHMARKS[name]}" if name in BENCHMARKS else name
    module, _, cls = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        if name in BENCHMARKS:
            raise
        known = ", ".join(BENCHMARKS)
        raise UserError(
            f'"{name}" is no benchmark{did_you_mean(name, BENCHMARKS)}; known: {known}, or the path of a class, such '
            "as my_package.my_file.MyBenchmark"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        raise UserError(f'"{name}" is not a class of benchmarks; it must derive from {_HERE}.benchmark.Benchmark')
    return found()
