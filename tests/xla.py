"""How much XLA optimises in tests: little, since they compile more than they compute."""

import os

LEVEL = f"--xla_backend_optimization_level={os.environ.get('JAXVLM_TEST_XLA', '0')}"
