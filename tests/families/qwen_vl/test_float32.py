"""What is computed in float32 by a model whose compute dtype is bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxvlm.families.build import build_model
from jaxvlm.families.qwen_vl.config import KINDS
from jaxvlm.families.qwen_vl.tower import interpolate_positions
from tests.families.qwen_vl import pairs
from tests.parity.tiny_llava import loss_of

pytestmark = pytest.mark.torch  # the tiny configs are made by transformers

# Softmax and loss; rope; norms; sums of all of them, and means.
FLOAT32 = {"exp", "log", "cos", "sin", "rsqrt", "square", "reduce_sum", "reduce_max"}


def make(kind, sizes):
    """The model, and a row with images of these sizes."""
    config = dataclasses.replace(pairs.our_config(pairs.hf_config(kind)), compute_dtype="bfloat16")
    return build_model(config), pairs.make_batch(config, [[pairs.make_example(0, 9, sizes)]], tokens=96)


def equations(jaxpr):
    """All equations, also those of loops and functions within."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_exponentials_roots_and_angles(kind):
    model, batch = make(kind, [(33, 21)])
    traced = jax.make_jaxpr(lambda p, b: loss_of(model, p, b))(model.abstract, batch)
    found = {(e.primitive.name, x.aval.dtype.name) for e in equations(traced.jaxpr) for x in e.invars}
    assert {dtype for name, dtype in found if name in FLOAT32} == {"float32"}
    assert {name for name, _ in found} >= FLOAT32 and ("dot_general", "bfloat16") in found


def test_learned_positions_are_rounded_once():
    """Of a strip of 2 x 120 patches, for which bfloat16 has too few numbers between the rows of the table."""
    model, batch = make("qwen3_vl", [(8, 480)])
    params, media = jax.tree.map(lambda w: np.zeros(w.shape, w.dtype), model.abstract), batch.media
    table = np.random.default_rng(0).standard_normal(params["vision"]["positions"].shape, np.float32)
    params["vision"]["positions"] = table  # the projection of pixels stays zero
    found = jax.jit(lambda params: model.bind(params).vision.embed(media))(params)
    want = np.asarray(jax.jit(interpolate_positions)(table, media.places, media.grids))
    assert found.dtype == jnp.bfloat16
    assert (np.abs(np.float32(found) - want) <= 2**-8 * np.abs(want)).all()
