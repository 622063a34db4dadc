"""How much XLA optimises in tests: little, since they compile more than they compute.

Without its emitters of fusions, the CPU compiler takes half the time (0.66 of tests/objectives/test_segments.py).
JAXVLM_TEST_XLA=3 in the environment compiles as for a run.
"""

import os

_LEVEL = os.environ.get("JAXVLM_TEST_XLA", "0")
LEVEL = f"--xla_backend_optimization_level={_LEVEL}"
if _LEVEL == "0":
    LEVEL += " --xla_cpu_use_fusion_emitters=false"
