"""Set before jax is imported: the tests run on eight fake CPU devices. What they cache is theirs alone."""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAXVLM_CACHE"] = tempfile.mkdtemp(prefix="jaxvlm-tests-")
atexit.register(shutil.rmtree, os.environ["JAXVLM_CACHE"], ignore_errors=True)
