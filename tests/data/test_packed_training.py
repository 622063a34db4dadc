"""Rows that the packer planned train as their samples alone: real records, the real plan, the training loss."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from jaxvlm.families.build import build_model
from jaxvlm.objectives import sft
from jaxvlm.trees import paths
from tests.data.conftest import data_config, write_records
from tests.layouts import make_pipeline
from tests.parity import tiny_llava


@pytest.fixture(scope="module")
def config(tokenizer):
    config = tiny_llava.tiny_config()
    return dataclasses.replace(config, language=dataclasses.replace(config.language, vocab_size=len(tokenizer) + 1))


@pytest.fixture(scope="module")
def epoch(config, tokenizer, tmp_path_factory):
    """Makes one batch of all rows of an epoch."""
    records = write_records(tmp_path_factory.mktemp("data"), 30)

    def epoch(pack):
        data = data_config(records, pack=pack, tokens=96, images=3)
        sizes = {"vision": config.vision, "seed": 0}
        rows = make_pipeline(data, tokenizer, rows=1, **sizes).num_rows(1)
        batches = make_pipeline(data, tokenizer, rows=rows, **sizes).batches()
        try:
            return next(batches)
        finally:
            batches.close()

    return epoch


@pytest.fixture(scope="module")
def packed(epoch):
    batch = epoch(True)
    held = batch.segments.max(axis=1)
    assert held.sum() == 30 and (held >= 3).sum() >= 3 and len(held) < 15
    return batch


@pytest.fixture(scope="module")
def model(config):
    return build_model(config)


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


def test_the_same_loss_and_gradients_as_a_sample_a_row(model, params, epoch, packed):
    def mean_loss(params, batch):
        loss, weight = sft.loss(model.bind(params), batch)["loss"]
        return loss / weight, weight

    step = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    alone = epoch(False)
    assert alone.segments.max() == 1 and len(alone.segments) == 30
    (loss, weight), gradients = jax.device_get(step(params, packed))
    (want_loss, want_weight), want = jax.device_get(step(params, alone))
    assert weight == want_weight > 100
    assert loss == pytest.approx(want_loss, rel=1e-5)
    gradients, want = paths(gradients), paths(want)
    assert all(want[path].any() for path in ("vision/patch/w", "projector/fc1/w", "language/embed/w"))
    for path, gradient in gradients.items():
        # Those that are zero except rounding, such as that of a key's bias, are held against the largest.
        scale = max(np.linalg.norm(want[path]), 1e-3 * np.linalg.norm(want["language/embed/w"]))
        assert np.linalg.norm(gradient - want[path]) <= 1e-5 * scale, path


def test_no_sample_sees_another_of_its_row(model, params, packed, config):
    P = config.vision.features_per_image
    logits = jax.jit(lambda batch: tiny_llava.loss_of(model, params, batch)[1])
    before = np.asarray(logits(packed))
    for segment in range(1, packed.segments.max() + 1):
        other, here = copy.deepcopy(packed), packed.segments == segment
        other.tokens[here] = np.where(packed.tokens[here] > 9, packed.tokens[here] - 1, 9)
        for row, slot in np.argwhere(packed.image_index >= 0):
            if here[row, slot]:
                other.media.pixels[row, packed.image_index[row, slot] // P] = 7
        after = np.asarray(logits(other))
        np.testing.assert_array_equal(after[~here], before[~here])
        for row in np.flatnonzero(here.any(axis=1)):
            assert (after[row, here[row]] != before[row, here[row]]).any(axis=-1).all(), (row, segment)
