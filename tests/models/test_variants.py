import dataclasses

import jax
import pytest

from jaxvlm.config import DecoderConfig, VisionConfig
from jaxvlm.config_reading import build_config
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.models import variants
from tests.parity import tiny_llava

# Parameters in millions as published (model cards; of CLIP and SigLIP those of the image encoder, without CLIP's
# projection and with SigLIP's pooling; tied embeddings once).
MILLIONS = {
    "clip_b32": 87.5,
    "clip_b16": 85.8,
    "clip_l14": 303.2,
    "clip_l14_336": 303.5,
    "clip_h14": 630.8,
    "siglip_b16": 92.9,
    "siglip_so400m_384": 428.2,
    "siglip2_b16": 92.9,
    "siglip2_so400m_384": 428.2,
    "llama_7b": 6738.4,
    "llama2_7b": 6738.4,
    "llama2_13b": 13015.9,
    "llama3_8b": 8030.3,
    "llama31_8b": 8030.3,
    "llama32_1b": 1235.8,
    "smollm2_135m": 134.5,
    "smollm2_360m": 361.8,
    "smollm2_1_7b": 1711.4,
    "mistral02_7b": 7241.7,
    "mistral03_7b": 7248.0,
    "qwen25_0_5b": 494.0,
    "qwen25_1_5b": 1543.7,
    "qwen25_3b": 3085.9,
    "qwen25_7b": 7615.6,
    "qwen3_0_6b": 596.0,
    "qwen3_1_7b": 1720.6,
    "qwen3_4b": 4022.5,
    "qwen3_8b": 8190.7,
    "vicuna15_7b": 6738.4,
    "vicuna15_13b": 13015.9,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_published_sizes(name):
    config = tiny_llava.tiny_config()
    if name.startswith(("clip", "siglip")):
        part, values = "vision", build_config(VisionConfig, variants.vision(name))
    else:
        part, values = "language", build_config(DecoderConfig, variants.language(name))
    model = build_model(dataclasses.replace(config, **{part: values}))
    count = sum(leaf.size for leaf in jax.tree.leaves(model.abstract[part]))
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.06)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match='no language model is called "lama2_7b" .did you mean "llama2_7b"'):
        variants.language("lama2_7b")
    with pytest.raises(UserError, match="known: clip_b32"):
        variants.vision("vit")


def test_every_row_has_a_published_number():
    assert set(MILLIONS) == {*variants._VISION, *variants._LANGUAGE}
