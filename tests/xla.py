"""How much XLA optimises in tests: little, since they compile more than they compute.

Without its emitters of fusions, the CPU compiler takes half the time (0.66 of tests/objectives/test_segments.py). Two
test workers have both cores, so that a program compiled in parts, or run by a pool of threads, only costs more.
JAXVLM_TEST_XLA=3 in the environment compiles as for a run.
"""

import importlib.metadata
import os

_LEVEL = os.environ.get("JAXVLM_TEST_XLA", "0")
LEVEL = f"--xla_backend_optimization_level={_LEVEL}"
DEFAULTS: dict[str, bool | int] = {"xla_backend_optimization_level": 3}  # of what LEVEL changes, as compiler options
# Newer versions do not know the first, and an unknown one ends the process (seen with 0.12.0.1).
if _LEVEL == "0" and tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    LEVEL += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    LEVEL += " --xla_llvm_disable_expensive_passes=true --xla_cpu_multi_thread_eigen=false"
    DEFAULTS |= {"xla_cpu_use_fusion_emitters": True, "xla_llvm_disable_expensive_passes": False}
