"""The same numbers as transformers in torch: each layer, logits, loss and the gradient of every weight."""

import jax
import numpy as np
import pytest
import torch

from jaxvlm.families.llava.weights import llava_rules, llava_sizes
from jaxvlm.models.layers import run_stack
from jaxvlm.trees import paths
from jaxvlm.weights.rules import import_tensors
from tests.parity import pairs, tiny_llava
from tests.xla import DEFAULTS

pytestmark = pytest.mark.torch

CONFIGS = {  # config, and the decoder's type at Hugging Face
    "clip_llama2_untied": (tiny_llava.tiny_config(), "llama"),
    "clip_llama3_tied": (tiny_llava.tied_config(), "llama"),
    "clip_llama_linear_rope": (tiny_llava.linear_rope_config(), "llama"),
    "clip_llama_yarn_biases": (tiny_llava.yarn_config(), "llama"),
    "clip_gelu_mistral": (tiny_llava.gelu_config(), "mistral"),
    "siglip_qwen2_tied": (tiny_llava.siglip_config(architecture="qwen2", qkv_bias=True, tie_embeddings=True), "qwen2"),
    "siglip_qwen3": (tiny_llava.siglip_config(architecture="qwen3", qk_norm=True), "qwen3"),
}
TOKENS, IMAGES = 40, 2  # of all our rows, so that a model compiles once


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def pair(request):
    config, decoder = CONFIGS[request.param]
    return pairs.make_pair(config, decoder=decoder)


@pytest.fixture(scope="module")
def samples(pair):
    """One image, two images, text only, one image: 17, 27, 10 and 13 tokens."""
    sizes = [(1, 8), (2, 9), (0, 10), (1, 4)]
    return [tiny_llava.make_sample(pair.model.config, i, images=n, text=text) for i, (n, text) in enumerate(sizes)]


@pytest.fixture(scope="module")
def theirs(pair, samples):
    """Hugging Face's loss, logits of each sample, and gradients in our tree."""
    config = pair.model.config
    pair.hf.zero_grad()
    out = pair.hf(**pairs.hf_batch(config, samples))
    out.loss.backward()
    logits = [out.logits[b, : len(sample.tokens)].detach().numpy() for b, sample in enumerate(samples)]
    gradients = pairs.hf_gradients(pair.hf)
    gradients = import_tensors(llava_rules(config), gradients, pair.model.abstract, llava_sizes(config))
    return out.loss.item(), logits, paths(gradients)


@pytest.fixture(scope="module")
def ours(pair):
    return compile_ours(pair)


def compile_ours(pair, **options):
    """Our loss, logits and gradients for rows of samples; `options` are the compiler's."""
    gradients_of = jax.value_and_grad(lambda p, b: tiny_llava.loss_of(pair.model, p, b), has_aux=True)
    step = jax.jit(gradients_of, compiler_options=options)

    def run(rows):
        batch = tiny_llava.make_batch(pair.model.config, rows, tokens=TOKENS, images=IMAGES)
        (loss, logits), gradients = jax.device_get(step(pair.params, batch))
        return float(loss), logits, paths(gradients)

    return run


def assert_same(theirs, ours, rows, samples):
    loss, logits, gradients = ours(rows)
    for b, row in enumerate(rows):
        start = 0
        for sample in row:
            index = next(i for i, other in enumerate(samples) if other is sample)
            here = logits[b, start : start + len(sample.tokens)]
            np.testing.assert_allclose(here, theirs[1][index], rtol=0, atol=1e-4)
            start += len(sample.tokens)
    assert loss == pytest.approx(theirs[0], rel=1e-5)
    errors = {}
    for path, want in theirs[2].items():
        if path == "vision/blocks/attention/k/bias":
            # It moves all scores of a query alike, so its true gradient is zero and both have only rounding errors.
            floor = 1e-5 * np.linalg.norm(theirs[2]["vision/blocks/attention/q/bias"])
            assert max(np.linalg.norm(want), np.linalg.norm(gradients[path])) < floor
            continue
        scale = np.linalg.norm(want)
        errors[path] = np.linalg.norm(gradients[path] - want) / scale if scale else np.abs(gradients[path]).max()
    print("largest gradient errors:", sorted(errors.items(), key=lambda item: -item[1])[:3])
    assert not {path: error for path, error in errors.items() if not error < 1e-4}


def test_a_sample_a_row(theirs, ours, samples):
    assert_same(theirs, ours, [[sample] for sample in samples], samples)


@pytest.mark.parametrize("pair", ["clip_llama3_tied"], indirect=True)
def test_a_sample_a_row_as_a_run_is_optimised(pair, theirs, samples):
    """With the options that tests/xla.py changes; test_as_optimised.py has all tests and models."""
    assert_same(theirs, compile_ours(pair, **DEFAULTS), [[sample] for sample in samples], samples)


def test_packed_rows(theirs, ours, samples):
    one, two, text, small = samples
    assert_same(theirs, ours, [[one, text, small], [two], [], []], samples)


def test_every_weight_but_the_unused_has_a_gradient(pair, theirs):
    unused = {path for path, gradient in theirs[2].items() if not gradient.any()}
    assert {path for path in unused if not path.startswith(("vision/post_norm/", "vision/pool/"))} == set()
    assert "vision/post_norm/scale" in unused


def test_layers_of_vision(pair):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 23, 23, 3), dtype=np.uint8)
    with torch.no_grad():
        tower = pair.hf.model.vision_tower
        want = tower(
            torch.from_numpy(tiny_llava.normalise(pair.model.config, pixels)), output_hidden_states=True
        ).hidden_states

    @jax.jit
    def run(params, pixels):
        vision = pair.model.bind(params).vision

        def apply(block, x, _):
            x = block(x)
            return x, x

        x = vision.embed(pixels)
        return x, run_stack(vision.blocks, apply, x)[1], vision(pixels)

    embedded, layers, features = run(pair.params, pixels)
    have = [embedded, *layers]
    assert len(have) == len(want)
    errors = [np.abs(np.asarray(a) - b.numpy()).max() for a, b in zip(have, want, strict=True)]
    print("largest error of each layer of the encoder:", errors)
    assert max(errors) < 1e-5
    layer = pair.model.config.vision.feature_layer
    np.testing.assert_allclose(
        features,
        want[layer][:, 1:].numpy() if pair.model.config.vision.class_token else want[layer].numpy(),
        atol=1e-5,
    )


def test_layers_of_language(pair, samples):
    c = pair.model.config.language
    x = np.random.default_rng(1).standard_normal((2, 37, c.embed_dim)).astype(np.float32)
    positions = np.broadcast_to(np.arange(37, dtype=np.int32), (2, 37))
    with torch.no_grad():
        want = pair.hf.model.language_model(inputs_embeds=torch.from_numpy(x), output_hidden_states=True).hidden_states

    @jax.jit
    def run(params, x, positions):
        language = pair.model.bind(params).language
        table = language._table(positions)

        def apply(block, x, _):
            x, _ = block(x, table, positions * 0 + 1)
            return x, x

        return run_stack(language.blocks, apply, x)[1], language(x, positions, positions * 0 + 1)

    layers, final = run(pair.params, x, positions)
    have = [x, *layers[:-1], final]  # HF norms the last one
    errors = [np.abs(np.asarray(a) - b.numpy()).max() for a, b in zip(have, want, strict=True)]
    print("largest error of each layer of the decoder:", errors)
    assert max(errors) < 1e-5
