"""Programs written for several GPUs, on CPU devices: the same numbers, and which data moves between the devices.

No GPU is here. The partitioner that splits a program over devices is the same for all platforms, so the collectives of
the program compiled for CPUs are those of GPUs; cuDNN's kernels are looked at in the program lowered for CUDA.
"""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jaxvlm import tuning
from jaxvlm.config import MeshConfig
from jaxvlm.families.build import build_model
from jaxvlm.objectives import sft
from jaxvlm.sharding import Rules, make_mesh, placed, to_devices
from jaxvlm.training.state import initial_state, state_layout
from jaxvlm.trees import paths
from tests import tiny

RULES = Rules()


def traced_gradients(devices, target, **changes):
    """A model's loss and gradients on an FSDP mesh: the traced program, its arguments, the mesh."""
    mesh = make_mesh(MeshConfig(1, devices, 1), jax.devices()[:devices])
    c = tiny.recipe()
    c.model.update(remat="dots", **changes)
    model = build_model(tiny.config(c).model)
    layout = state_layout(model, tiny.stage(), 3, mesh, RULES)

    def loss(trained, batch):
        with placed(mesh, RULES, target):
            return sft.loss(model.bind(trained), batch)["loss"][0]

    with jax.set_mesh(mesh):
        arguments = initial_state(layout, 0, tiny.params(model)).trained, to_devices(tiny.batch(), mesh, RULES)
        return jax.jit(jax.value_and_grad(loss)).trace(*arguments), arguments, mesh


def test_fsdp_gathers_weights_and_scatters_gradients():
    want_program, want_arguments, _ = traced_gradients(1, "cpu")
    want, want_gradients = want_program.lower().compile()(*want_arguments)
    traced, arguments, mesh = traced_gradients(8, "gpu")
    with jax.set_mesh(mesh):
        compiled = traced.lower().compile()
        loss, gradients = compiled(*arguments)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    expected = paths(want_gradients)
    for path, gradient in paths(gradients).items():
        if not path.endswith("attention/k/bias"):  # 0 except rounding
            have, wanted = np.asarray(gradient), np.asarray(expected[path])
            difference = np.linalg.norm(have - wanted) / max(np.linalg.norm(wanted), 1e-12)
            assert difference < 1e-4, (path, difference)

    scattered = shapes_of(compiled.as_text(), "reduce-scatter")
    summed = shapes_of(compiled.as_text(), "all-reduce")
    own = {(6, 6, 10), (6, 2, 10), (6, 10, 6), (6, 56), (56, 6)}  # an eighth of 48, of each weight of the blocks
    assert own <= set(scattered), scattered
    whole = {(48, 6, 10), (48, 2, 10), (6, 10, 48), (48, 56), (56, 48)}
    assert not whole & set(summed), summed
    assert not [shape for shape in summed if tiny.batch().tokens.shape[1] in shape], summed  # no activation is summed


def shapes_of(program, kind):
    """The shapes of what all operations of a kind give."""
    found = []
    for line in program.splitlines():
        if match := re.search(rf"= (.*?) {kind}\(", line):
            found += [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\w+\[([\d,]+)\]", match[1])]
    return found


def test_each_gpu_runs_cudnn_on_its_own_rows(monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    traced, *_ = traced_gradients(
        8,
        "gpu",
        compute_dtype="bfloat16",
        language={"head_dim": 16},
        vision={"embed_dim": 48},  # heads of 16: cuDNN's rule
    )
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"@__cudnn\$fmha(\w*)\(.*?\) .*? : \((tensor<[^>]*>)", program)
    assert {name for name, _ in calls} >= {"ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward"}, calls
    rows = tiny.batch().tokens.shape[0]
    for _, query in calls:
        sizes = [int(size) for size in re.findall(r"(\d+)x", query)]
        assert sizes[0] in (rows // 8, 2 * rows // 8), query  # the decoder's rows; the encoder's two images of a row


def test_options_of_gpus_are_known_to_this_compiler():
    options = tuning.compiler_options(mesh_of("gpu", size=8), "xla_gpu_all_gather_combine_threshold_bytes=1000")
    assert len(options) == len(tuning.GPUS) + 1
    assert np.isfinite(jax.jit(jnp.sin, compiler_options=options)(1.0))
    with pytest.raises(Exception, match="xla_gpu_no_such_option"):
        jax.jit(jnp.cos, compiler_options={"xla_gpu_no_such_option": "true"})(1.0)


@pytest.mark.parametrize(("platform", "kept"), [("gpu", "xla_gpu_a"), ("tpu", "xla_tpu_b"), ("cpu", None)])
def test_a_recipe_may_name_options_of_both_platforms(platform, kept):
    options = tuning.compiler_options(mesh_of(platform, size=1), "xla_gpu_a=1 xla_tpu_b=2")
    assert list(options) == ([kept] if kept else [])


def test_only_booleans_are_spelled_otherwise():
    given = "xla_gpu_a=FUSION,CUBLAS xla_gpu_b=false xla_gpu_c=12"
    options = tuning.compiler_options(mesh_of("gpu", size=1), given)
    assert options == {"xla_gpu_a": "FUSION,CUBLAS", "xla_gpu_b": "False", "xla_gpu_c": "12"}


def mesh_of(platform, size):
    """What `compiler_options` asks of a mesh."""
    device = types.SimpleNamespace(platform=platform, device_kind="?")
    return types.SimpleNamespace(size=size, devices=np.array([device]))
