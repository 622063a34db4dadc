"""Set before jax is imported: the tests run on eight fake CPU devices. What they cache is theirs alone.

hypothesis draws the same examples each time, so that a change fails for what it changes; it looks further with
`pytest --hypothesis-profile=search`, and `--hypothesis-seed=N` for another part of it.
"""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAXVLM_CACHE"] = tempfile.mkdtemp(prefix="jaxvlm-tests-")
atexit.register(shutil.rmtree, os.environ["JAXVLM_CACHE"], ignore_errors=True)

settings.register_profile("search", deadline=None, database=None)
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")
