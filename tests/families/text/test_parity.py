"""A decoder alone against transformers' own: logits, the loss and all gradients of packed rows, exports, adapters."""

import math

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxvlm.families.build import build_model
from jaxvlm.families.registry import codec
from jaxvlm.families.text.config import TextConfig
from jaxvlm.families.text.layout import NoMedia
from jaxvlm.trees import paths
from jaxvlm.weights.rules import import_tensors
from tests.parity import pairs, tiny_llava

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_device")]


def text_of(config):
    return TextConfig("text", config.language, "float32", "none")


CONFIGS = {
    "llama": (tiny_llava.tiny_config(), "llama"),
    "tied": (tiny_llava.tied_config(), "llama"),
    "qwen2": (tiny_llava.siglip_config(qkv_bias=True, architecture="qwen2"), "qwen2"),
    "qwen3": (tiny_llava.siglip_config(qk_norm=True, architecture="qwen3"), "qwen3"),
}


def make(name):
    """A random decoder in both."""
    whole, decoder = CONFIGS[name]
    made = pairs.hf_config(whole, decoder).text_config
    made._attn_implementation = "eager"
    hf = transformers.AutoModelForCausalLM.from_config(made).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, weight in hf.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = weight.ndim == 1 and "norm" in path
            weight.copy_(0.3 * noise + is_norm if weight.ndim == 1 else noise / math.sqrt(weight[0].numel()))
    config = text_of(whole)
    form, model = codec("text"), build_model(config)
    tensors = {path: weight.detach().numpy() for path, weight in hf.named_parameters()}
    return hf, model, import_tensors(form.rules(config, form.hub), tensors, model.abstract, {})


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_are_the_samples_alone(name):
    hf, model, params = make(name)
    config = CONFIGS[name][0]
    samples = [tiny_llava.make_sample(config, seed, images=0, text=size) for seed, size in enumerate((9, 14, 6, 11))]
    batch = tiny_llava.make_batch(config, [samples[:2], samples[2:]], tokens=25, images=1)._replace(media=NoMedia())
    inputs = pairs.hf_batch(config, samples)
    said = hf(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    labels = inputs["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(said.logits[:, :-1].transpose(1, 2), labels, ignore_index=-100)
    loss.backward()

    (have, logits), gradients = jax.value_and_grad(lambda p: tiny_llava.loss_of(model, p, batch), has_aux=True)(params)
    assert float(have) == pytest.approx(loss.item(), rel=1e-5)
    places = [(row, start) for row in range(2) for start in (0, len(samples[2 * row].tokens))]
    for (row, start), sample, expected in zip(places, samples, said.logits.detach().numpy(), strict=True):
        n = len(sample.tokens)
        np.testing.assert_allclose(logits[row, start : start + n], expected[:n], atol=3e-5)
    form = codec("text")
    theirs = {path: weight.grad.numpy() for path, weight in hf.named_parameters()}
    wanted = paths(import_tensors(form.rules(text_of(config), form.hub), theirs, model.abstract, {}))
    for path, gradient in paths(gradients).items():
        np.testing.assert_allclose(gradient, wanted[path], atol=2e-6 + 2e-5 * np.abs(wanted[path]).max(), err_msg=path)
