"""A checkpoint is read by two real processes, each of which reads the half that it holds."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import hf_folders
from tests.parity import tiny_llava
from tests.xla import LEVEL

pytestmark = pytest.mark.torch

# Widths that two processes of two devices split evenly.
MODEL = tiny_llava.tiny_config()
MODEL = dataclasses.replace(MODEL, language=dataclasses.replace(MODEL.language, vocab_size=400))

CHILD = """
import json, sys
import jax
import numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jaxvlm.config import MeshConfig
from jaxvlm.families.build import build_model

from jaxvlm.sharding import Rules, make_mesh, named_shardings
from jaxvlm.trees import paths
from jaxvlm.weights import rules
from jaxvlm.families.sources import open_source
from jaxvlm.weights.source import load_weights
import dataclasses
from tests.parity import tiny_llava
MODEL = tiny_llava.tiny_config()
MODEL = dataclasses.replace(MODEL, language=dataclasses.replace(MODEL.language, vocab_size=400))

copied, copy = [], rules._copy
def counting(into, view):
    copied.append(view.nbytes)
    copy(into, view)
rules._copy = counting
model, source = build_model(MODEL), open_source(sys.argv[3])
mesh = make_mesh(MeshConfig(1, 4, 1))
shardings = named_shardings(mesh, Rules(), model.abstract, model.axes)
abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), model.abstract, shardings)
params = load_weights(source, MODEL, abstract)
whole = paths(load_weights(source, MODEL, model.abstract))
held = 0
for path, leaf in paths(params).items():
    boxes = {str(shard.index): shard for shard in leaf.addressable_shards}
    held += sum(shard.data.nbytes for shard in boxes.values())
    for shard in boxes.values():
        np.testing.assert_array_equal(shard.data, whole[path][shard.index])
total = sum(x.nbytes for x in whole.values())
print(json.dumps({"copied": sum(copied) - total, "held": held, "total": total}))
"""


@pytest.mark.nightly  # tests/weights/test_rules.py has what a host reads
def test_each_process_reads_what_it_holds(tmp_path):
    hf_folders.write_llava(tmp_path / "llava", MODEL, shard="100KB")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{LEVEL} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(root),
    }
    arguments = [(sys.executable, "-c", CHILD, address, str(i), str(tmp_path / "llava")) for i in range(2)]
    children = [
        subprocess.Popen(a, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for a in arguments
    ]
    results = [child.communicate(timeout=300) for child in children]
    for child, (_, errors) in zip(children, results, strict=True):
        assert child.returncode == 0, errors[-3000:]
    for out, _ in results:
        said = json.loads(out.splitlines()[-1])
        assert said["copied"] == said["held"] < 0.65 * said["total"], said
