"""Set before jax is imported: the tests run on eight fake CPU devices. What they cache is theirs alone.

Most of their time would be XLA's. So it optimises little (tests/xla.py), and .pytest_cache/xla keeps what it compiled
for the next session; the folder may be deleted at any time.

hypothesis draws the same examples each time, so that a change fails for what it changes; it looks further with
`pytest --hypothesis-profile=search`, and `--hypothesis-seed=N` for another part of it.
"""

import atexit
import gc
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.xla import LEVEL

# Dozens of child processes import the package: where bytecode is not written, each of them compiles it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's models are tiny, and the cores are those of the test workers
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {LEVEL} --xla_force_host_platform_device_count=8"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAXVLM_CACHE"] = tempfile.mkdtemp(prefix="jaxvlm-tests-")
atexit.register(shutil.rmtree, os.environ["JAXVLM_CACHE"], ignore_errors=True)

gc.disable()  # until all is imported (pytest_collection_finish): a sixth of the collection

NEEDS_TORCH = re.compile(r"^pytestmark = .*pytest\.mark\.torch\b", re.MULTILINE)
LONGEST = {name: place for place, name in enumerate(("e2e", "planning", "models", "training", "objectives"))}

settings.register_profile("search", deadline=None, database=None)
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")


@pytest.fixture
def one_device(monkeypatch):
    """Commands see one device, whatever the suite has."""
    import jax

    monkeypatch.setattr("jaxvlm.sharding.available_devices", lambda: jax.devices()[:1])


def pytest_ignore_collect(collection_path, config):
    """With `-m "not torch"`, for machines without torch, the files that need it as a whole are not imported either."""
    if (
        "not torch" in config.option.markexpr
        and collection_path.suffix == ".py"
        and NEEDS_TORCH.search(collection_path.read_text(encoding="utf-8"))
    ):
        return True
    return None


def pytest_collection_finish(session):
    """What is imported stays: the collector need not look at millions of objects of modules again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    gc.enable()


def pytest_collection_modifyitems(config, items):
    """Leaves nightly tests out, unless `-m` names them; puts the longest files first, so that no worker ends alone."""
    if "nightly" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("nightly")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    items.sort(key=lambda item: LONGEST.get(item.path.parent.name, len(LONGEST)))
