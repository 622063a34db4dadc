"""config.json of published checkpoints, as they are on the hub, and every way in which one can be refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxvlm.config import DecoderConfig, ProjectorConfig, RopeScaling, VisionConfig
from jaxvlm.config_reading import build_config
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.llava import hf
from jaxvlm.families.llava.config import LlavaConfig
from jaxvlm.families.sources import folder_codec
from jaxvlm.models import variants
from jaxvlm.models.layers import rope_table
from jaxvlm.weights.hf import decoder, strict
from jaxvlm.weights.hf import vision as encoders
from tests.parity import tiny_llava

LLAMA = json.loads("""{
  "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
  "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
  "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": true, "vocab_size": 32000
}""")
VICUNA = LLAMA | {"_name_or_path": "vicuna-7b-v1.5"}
LLAMA1 = json.loads("""{
  "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 4096, "intermediate_size": 11008, "initializer_range": 0.02, "max_sequence_length": 2048,
  "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "pad_token_id": 0, "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.28.0.dev0",
  "use_cache": true, "vocab_size": 32000
}""")
LLAMA32 = json.loads("""{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
  "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256
}""")
SMOLLM2_135M = json.loads("""{
  "_name_or_path": "HuggingFaceTB/SmolLM2-135M", "architectures": ["LlamaForCausalLM"], "attention_bias": false,
  "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "head_dim": 64, "hidden_act": "silu",
  "hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
  "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 9,
  "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true, "vocab_size": 49152
}""")
SMOLLM2_1_7B = json.loads("""{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 8192, "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 32, "pad_token_id": 2,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 130000,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "use_cache": true,
  "vocab_size": 49152
}""")
MISTRAL = json.loads("""{
  "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0", "use_cache": true,
  "vocab_size": 32768
}""")
QWEN25 = json.loads("""{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
  "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
  "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
  "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
  "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
  "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936
}""")
QWEN3 = json.loads("""{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
  "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
  "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
  "vocab_size": 151936
}""")

# What transformers 4.21 wrote into every part of a config.
OLD = json.loads("""{
  "_name_or_path": "", "add_cross_attention": false, "architectures": null, "attention_dropout": 0.0,
  "bad_words_ids": null, "bos_token_id": null, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": null,
  "decoder_start_token_id": null, "diversity_penalty": 0.0, "do_sample": false, "dropout": 0.0,
  "early_stopping": false, "encoder_no_repeat_ngram_size": 0, "eos_token_id": null,
  "exponential_decay_length_penalty": null, "finetuning_task": null, "forced_bos_token_id": null,
  "forced_eos_token_id": null, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_factor": 1.0,
  "initializer_range": 0.02, "is_decoder": false, "is_encoder_decoder": false,
  "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
  "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
  "output_attentions": false, "output_hidden_states": false, "output_scores": false, "pad_token_id": null,
  "prefix": null, "problem_type": null, "pruned_heads": {}, "remove_invalid_values": false,
  "repetition_penalty": 1.0, "return_dict": true, "return_dict_in_generate": false, "sep_token_id": null,
  "task_specific_params": null, "temperature": 1.0, "tf_legacy_loss": false, "tie_encoder_decoder": false,
  "tie_word_embeddings": true, "tokenizer_class": null, "top_k": 50, "top_p": 1.0, "torch_dtype": null,
  "torchscript": false, "transformers_version": "4.21.3", "typical_p": 1.0, "use_bfloat16": false
}""")
CLIP_L336_SIZES = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP_L336 = {
    "_name_or_path": "openai/clip-vit-large-patch14-336",
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": OLD | {"hidden_size": 768, "model_type": "clip_text_model", "num_attention_heads": 12},
    "text_config_dict": {"projection_dim": 768, "hidden_size": 768, "num_attention_heads": 12},
    "torch_dtype": "float32",
    "transformers_version": None,
    "vision_config": OLD
    | CLIP_L336_SIZES
    | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "model_type": "clip_vision_model", "num_channels": 3},
    "vision_config_dict": CLIP_L336_SIZES,
}
CLIP_H = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 1024,
    "text_config": {"hidden_act": "gelu", "hidden_size": 1024, "num_attention_heads": 16},
    "vision_config": OLD
    | {
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 224,
        "intermediate_size": 5120,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 512,
    },
}
SIGLIP = json.loads("""{
  "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
  "text_config": {"hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_text_model",
                  "num_attention_heads": 16, "num_hidden_layers": 27},
  "torch_dtype": "float32", "transformers_version": "4.37.0.dev0",
  "vision_config": {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
                    "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
                    "patch_size": 14}
}""")
SIGLIP_BASE = json.loads("""{
  "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
  "text_config": {"model_type": "siglip_text_model"}, "torch_dtype": "float32",
  "transformers_version": "4.37.0.dev0", "vision_config": {"model_type": "siglip_vision_model"}
}""")
LLAVA = json.loads("""{
  "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
  "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu",
  "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
                  "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
                  "torch_dtype": "float16", "vocab_size": 32064},
  "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
  "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
                    "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
                    "patch_size": 14, "projection_dim": 768, "vocab_size": 32000},
  "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064
}""")
ORIGINAL = LLAMA | json.loads("""{
  "_name_or_path": "llava-v1.5-7b", "architectures": ["LlavaLlamaForCausalLM"], "freeze_mm_mlp_adapter": false,
  "freeze_mm_vision_resampler": false, "image_aspect_ratio": "pad", "max_length": 4096, "mm_hidden_size": 1024,
  "mm_projector_type": "mlp2x_gelu", "mm_resampler_type": null, "mm_use_im_patch_token": false,
  "mm_use_im_start_end": false, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
  "mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava_llama",
  "tune_mm_mlp_adapter": false, "tune_mm_vision_resampler": false, "unfreeze_mm_vision_tower": false,
  "use_mm_proj": true
}""")
CLIP_PIXELS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


class Ids:
    """All of a tokenizer that a config needs."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0


def language(name, **changes):
    return build_config(DecoderConfig, variants.language(name) | changes)


def vision(name, **changes):
    return build_config(VisionConfig, variants.vision(name) | changes)


@pytest.fixture
def folder(tmp_path):
    """Writes config.json and other files of a folder."""

    def write(values, **files):
        (tmp_path / "config.json").write_text(values if isinstance(values, str) else json.dumps(values))
        for name, other in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(other))
        return tmp_path

    return write


PUBLISHED_DECODERS = {
    "llama2_7b": LLAMA,
    "vicuna15_7b": VICUNA,
    "llama_7b": LLAMA1,
    "llama32_1b": LLAMA32,
    "smollm2_135m": SMOLLM2_135M,
    "smollm2_1_7b": SMOLLM2_1_7B,
    "mistral03_7b": MISTRAL,
    "qwen25_0_5b": QWEN25,
    "qwen3_0_6b": QWEN3,
}


@pytest.mark.parametrize("name", PUBLISHED_DECODERS)
def test_published_decoders(name, folder):
    at = folder(PUBLISHED_DECODERS[name])
    assert folder_codec(at) is decoder.CODEC
    assert decoder.read_language(at) == language(name)


PUBLISHED_ENCODERS = {
    "clip_l14_336": CLIP_L336,
    "clip_h14": CLIP_H,
    "siglip_so400m_384": SIGLIP,
    "siglip_b16": SIGLIP_BASE,
}


@pytest.mark.parametrize("name", PUBLISHED_ENCODERS)
def test_published_encoders(name, folder):
    at = folder(PUBLISHED_ENCODERS[name])
    assert folder_codec(at) is encoders.CODEC
    assert encoders.read_vision(at) == vision(name)
    assert encoders.read_vision(at, -1) == vision(name, feature_layer=-1)


def test_an_encoder_without_its_text_encoder(folder):
    values = CLIP_L336["vision_config"]
    assert encoders.read_vision(folder(values)) == vision("clip_l14_336")
    values = SIGLIP["vision_config"]
    assert folder_codec(folder(values)) is encoders.CODEC
    assert encoders.read_vision(folder(values)) == vision("siglip_so400m_384")


@pytest.mark.parametrize("name", ["preprocessor_config", "processor_config"])
def test_mean_and_deviation_come_from_the_preprocessor(name, folder):
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_normalize": True, "do_rescale": True}
    files = {name: {"image_processor": values} if name == "processor_config" else values}
    config = encoders.read_vision(folder(CLIP_L336, **files))
    assert config == vision("clip_l14_336", image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6))


def test_a_preprocessor_that_does_something_else(folder):
    values = {"do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 127.5, "image_mean": [0.1]}
    with pytest.raises(UserError) as error:
        encoders.read_vision(folder(CLIP_L336, preprocessor_config=values))
    for found in ("do_normalize = false", "rescale_factor = 0.0078", "image_mean = [0.1]", "image_std = null"):
        assert found in str(error.value)


def test_llava(folder):
    at = folder(LLAVA, preprocessor_config=CLIP_PIXELS)
    assert folder_codec(at) is hf.CODEC and not hf.is_original(strict.read_config(at))
    assert hf.read_llava(at) == hf.Llava(
        vision("clip_l14_336"), ProjectorConfig("mlp2x_gelu"), language("vicuna15_7b", vocab_size=32064), 32000
    )


def test_llava_layer_counted_from_the_front_and_ties_of_either_place(folder):
    # Hugging Face's 0 is what enters the first block, so 23 of 24 blocks is the block before the last.
    read = hf.read_llava(folder(LLAVA | {"vision_feature_layer": 23}))
    assert read.vision.feature_layer == -2
    assert hf.read_llava(folder(LLAVA | {"tie_word_embeddings": True})).language.tie_embeddings
    tied = LLAVA | {"text_config": LLAVA["text_config"] | {"tie_word_embeddings": True}}
    assert hf.read_llava(folder(tied)).language.tie_embeddings


def test_llava_of_siglip_and_qwen(folder):
    values = LLAVA | {
        "vision_config": SIGLIP["vision_config"],
        "text_config": QWEN25,
        "vision_feature_select_strategy": "full",
        "image_token_id": 151646,
    }
    del values["image_token_index"], values["tie_word_embeddings"]
    read = hf.read_llava(folder(values))
    assert read == hf.Llava(vision("siglip_so400m_384"), ProjectorConfig("mlp2x_gelu"), language("qwen25_0_5b"), 151646)


@pytest.mark.parametrize("kind", ["llava_llama", "llava"])
def test_original_llava(kind, folder):
    at = folder(ORIGINAL | {"model_type": kind})
    assert folder_codec(at) is hf.CODEC and hf.is_original(strict.read_config(at))
    assert hf.read_original_llava(at) == hf.OriginalLlava(
        ProjectorConfig("mlp2x_gelu"),
        language("vicuna15_7b"),
        vision_tower="openai/clip-vit-large-patch14-336",
        vision_embed_dim=1024,
        feature_layer=-2,
        aspect="pad",
        tower_trained=False,
    )


def test_original_llava_of_other_decoders(folder):
    mm = {name: value for name, value in ORIGINAL.items() if name not in LLAMA}
    read = hf.read_original_llava(folder(MISTRAL | mm | {"model_type": "llava_mistral"}))
    assert read.language == language("mistral03_7b")
    read = hf.read_original_llava(folder(QWEN25 | mm | {"model_type": "llava_qwen"}))
    assert read.language == language("qwen25_0_5b")
    read = hf.read_original_llava(folder(ORIGINAL | {"image_aspect_ratio": None}))
    assert read.aspect == "square"


NEW_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_rope_of_transformers_5(folder):
    values = LLAMA32 | {"rope_parameters": NEW_ROPE | {"original_max_position_embeddings": 8192}}
    del values["rope_scaling"], values["rope_theta"]
    config = decoder.read_language(folder(values))
    assert (config.rope_theta, config.rope_scaling) == (5e5, RopeScaling(8.0, 1.0, 4.0, 8192))
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    config = decoder.read_language(folder(values))
    assert (config.rope_theta, config.rope_scaling) == (1e6, None)


@pytest.mark.torch
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2},
        {"mscale": 1.0, "mscale_all_dim": 0.7},
        {"beta_fast": None, "beta_slow": 0, "mscale": 1.0},
    ],
)
@pytest.mark.parametrize("theta", [1e6, 1e4])
def test_yarn_has_the_frequencies_of_transformers(folder, more, theta):
    """As Qwen's pages tell users to write it, and with each number that may be left out."""
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    at = folder(QWEN25 | {"rope_theta": theta, "rope_scaling": rope | more})
    config = decoder.read_language(at)
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](transformers.AutoConfig.from_pretrained(at), "cpu")
    one = jnp.ones((1, 1), jnp.int32)
    cos, sin = rope_table(one, config.head_dim, config.rope_theta, config.rope_scaling)
    assert config.rope_scaling.attention_factor == factor
    np.testing.assert_allclose(jnp.arctan2(sin, cos)[0, 0, 0], frequencies, rtol=2e-6)
    np.testing.assert_allclose(jnp.hypot(sin, cos)[0, 0, 0], factor, rtol=1e-6)


@pytest.mark.parametrize("values", [LLAMA, QWEN3], ids=["llama", "qwen3"])
def test_attention_bias(folder, values):
    config = decoder.read_language(folder(values | {"attention_bias": True}))
    assert (config.qkv_bias, config.out_bias) == (True, True)


REFUSED_DECODERS = {
    "sliding_window = 4096, supported: null": LLAMA | {"sliding_window": 4096},
    "sliding_window = 32768": QWEN25 | {"use_sliding_window": True},
    'layer_types = ["full_attention", "sliding_attention"]': QWEN3
    | {"layer_types": ["sliding_attention"] + 27 * ["full_attention"]},
    "attention_bias = true": QWEN25 | {"attention_bias": True},
    "mlp_bias = true, supported: false": LLAMA | {"mlp_bias": True},
    'hidden_act = "gelu", supported: "silu"': LLAMA | {"hidden_act": "gelu"},
    "rope_interleaved = true": SMOLLM2_135M | {"rope_interleaved": True},
    'rope_type = "dynamic", supported: default, linear, llama3, yarn': LLAMA
    | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "truncate = false, supported: true": QWEN25
    | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "truncate": False}},
    "partial_rotary_factor = 0.5, supported: 1.0": LLAMA | {"partial_rotary_factor": 0.5},
    "mrope_section = [16, 24, 24], an unknown field": QWEN25
    | {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
    "refused by transformers": LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "refused by transformers (": LLAMA | {"hidden_size": "many"},
    'quantization_config = {"bits": 4}, an unknown field': LLAMA | {"quantization_config": {"bits": 4}},
    "attn_logit_softcapping = 50.0, an unknown field": LLAMA | {"attn_logit_softcapping": 50.0},
    "new_switch = false, an unknown field": LLAMA | {"new_switch": False},
}


@pytest.mark.parametrize("message", REFUSED_DECODERS)
def test_refused_decoders(message, folder):
    at = folder(REFUSED_DECODERS[message])
    with pytest.raises(UserError) as error:
        decoder.read_language(at)
    assert message in str(error.value) and "config.json" in str(error.value)


def test_all_problems_of_a_file_come_in_one_message(folder):
    values = LLAMA | {
        "mlp_bias": True,
        "hidden_act": "gelu",
        "new": 1,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    with pytest.raises(UserError) as error:
        decoder.read_language(folder(values))
    for found in ("mlp_bias = true", 'hidden_act = "gelu"', "new = 1", 'rope_type = "dynamic"'):
        assert found in str(error.value)


def changed(values, part, **changes):
    return values | {part: values[part] | changes}


REFUSED_ENCODERS = {
    'hidden_act = "relu", supported: quick_gelu, gelu, gelu_pytorch_tanh, silu': changed(
        SIGLIP, "vision_config", hidden_act="relu"
    ),
    "vision_config.num_channels = 4, supported: 3": changed(SIGLIP, "vision_config", num_channels=4),
    "vision_config.image_size = [336, 224]": changed(SIGLIP, "vision_config", image_size=[336, 224]),
    "num_registers = 4, an unknown field": changed(SIGLIP, "vision_config", num_registers=4),
    "quantization_config": SIGLIP | {"quantization_config": {"bits": 4}},
    "refused by transformers": changed(SIGLIP, "vision_config", hidden_size="many"),
    "siglip2 is NaFlex": {"model_type": "siglip2_vision_model"},
    'model_type "vit" is not supported; known: clip_vision_model, siglip_vision_model, clip, siglip': {
        "model_type": "vit"
    },
}


@pytest.mark.parametrize("message", REFUSED_ENCODERS)
def test_refused_encoders(message, folder):
    with pytest.raises(UserError) as error:
        encoders.read_vision(folder(REFUSED_ENCODERS[message]))
    assert message in str(error.value)


REFUSED_LLAVAS = {
    "vision_feature_layer = [-2, -5], supported: one layer": LLAVA | {"vision_feature_layer": [-2, -5]},
    "vision_feature_layer = -25, supported: -24 to -1": LLAVA | {"vision_feature_layer": -25},
    "vision_feature_layer = 0": LLAVA | {"vision_feature_layer": 0},
    'vision_feature_select_strategy = "full", supported: "default" for clip': LLAVA
    | {"vision_feature_select_strategy": "full"},
    'vision_feature_select_strategy = "default", supported: "full" for siglip': LLAVA
    | {"vision_config": SIGLIP["vision_config"]},
    'projector_hidden_act = "relu", supported: "gelu"': LLAVA | {"projector_hidden_act": "relu"},
    "multimodal_projector_bias = false": LLAVA | {"multimodal_projector_bias": False},
    "image_grid_pinpoints": LLAVA | {"image_grid_pinpoints": [[336, 672]]},
    "text_config.mlp_bias = true": changed(LLAVA, "text_config", mlp_bias=True),
    "vision_config.num_channels = 1": changed(LLAVA, "vision_config", num_channels=1),
    'text_config: model_type "gemma" is not supported; known: llama, mistral, qwen2, qwen3': changed(
        LLAVA, "text_config", model_type="gemma"
    ),
    'vision_config: model_type "pixtral" is not supported': changed(LLAVA, "vision_config", model_type="pixtral"),
    "refused by transformers": changed(LLAVA, "text_config", hidden_size=4097),
    'model_type "llava_next" is not supported; known: llava': LLAVA | {"model_type": "llava_next"},
}


@pytest.mark.parametrize("message", REFUSED_LLAVAS)
def test_refused_llavas(message, folder):
    with pytest.raises(UserError) as error:
        hf.read_llava(folder(REFUSED_LLAVAS[message]))
    assert message in str(error.value)


REFUSED_ORIGINALS = {
    "mm_use_im_start_end = true, supported: false": ORIGINAL | {"mm_use_im_start_end": True},
    "mm_use_im_patch_token = true": ORIGINAL | {"mm_use_im_patch_token": True},
    'mm_vision_select_feature = "cls_patch", supported: "patch"': ORIGINAL | {"mm_vision_select_feature": "cls_patch"},
    'mm_projector_type = "resampler"': ORIGINAL | {"mm_projector_type": "resampler"},
    'mm_resampler_type = "perceiver"': ORIGINAL | {"mm_resampler_type": "perceiver"},
    'mm_patch_merge_type = "spatial_unpad", supported: "flat"': ORIGINAL | {"mm_patch_merge_type": "spatial_unpad"},
    'image_aspect_ratio = "anyres", supported: "pad" or "square"': ORIGINAL | {"image_aspect_ratio": "anyres"},
    "mm_vision_tower = null": ORIGINAL | {"mm_vision_tower": None},
    "mm_vision_select_layer = 3": ORIGINAL | {"mm_vision_select_layer": 3},
    "mm_new = 1, an unknown field": ORIGINAL | {"mm_new": 1},
    "mlp_bias = true": ORIGINAL | {"mlp_bias": True},
    'model_type "llava_mpt" is not supported; known: llava_llama': ORIGINAL | {"model_type": "llava_mpt"},
}


@pytest.mark.parametrize("message", REFUSED_ORIGINALS)
def test_refused_originals(message, folder):
    with pytest.raises(UserError) as error:
        hf.read_original_llava(folder(REFUSED_ORIGINALS[message]))
    assert message in str(error.value)


def test_files_that_are_no_configs(folder, tmp_path):
    with pytest.raises(UserError, match="config.json does not exist; point at a folder"):
        strict.read_config(tmp_path)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        strict.read_config(folder("{"))
    with pytest.raises(UserError, match="holds a list, expected a JSON object"):
        strict.read_config(folder("[]"))
    with pytest.raises(UserError, match='model_type "gpt2" is not supported; known: llava_llama, llava, .*qwen3$'):
        folder_codec(folder({"model_type": "gpt2"}))
    with pytest.raises(UserError, match='model_type "gpt2" is not supported; known: llama, mistral, qwen2, qwen3'):
        decoder.read_language(folder({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="model_type null"):
        folder_codec(folder({}))


@pytest.mark.parametrize("name", variants._VISION)
def test_encoders_come_back(name, folder):
    config = vision(name)
    values = encoders.hf_vision_config(config, dtype="float16")
    pixels = {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
    at = folder(values, preprocessor_config=pixels)
    assert encoders.read_vision(at) == config
    loaded = transformers.AutoConfig.from_pretrained(at)
    assert loaded.model_type == ("siglip_vision_model" if config.pool else "clip_vision_model")
    assert loaded.num_hidden_layers == config.num_layers
    assert values["dtype"] == "float16" and values["transformers_version"] == transformers.__version__


TINY = DecoderConfig(101, 48, 56, 3, 6, 2, 10, 1e-6, 5000.0, None, False, qkv_bias=False, qk_norm=False)


@pytest.mark.parametrize("name", [*variants._LANGUAGE, "tiny", "tiny_bias", "tiny_norm", "tiny_yarn"])
def test_decoders_come_back(name, folder):
    tiny = {
        "tiny": TINY,
        "tiny_bias": dataclasses.replace(TINY, qkv_bias=True, architecture="qwen2", tie_embeddings=True),
        "tiny_norm": dataclasses.replace(
            TINY, qk_norm=True, architecture="qwen3", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)
        ),
        "tiny_yarn": tiny_llava.yarn_config().language,
    }
    config = tiny.get(name) or language(name)
    values = decoder.hf_language_config(config, Ids, dtype="bfloat16", max_positions=2048)
    at = folder(values)
    assert decoder.read_language(at) == config
    loaded = transformers.AutoConfig.from_pretrained(at)
    assert loaded.architectures == [
        {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[loaded.model_type] + "ForCausalLM"
    ]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)
    assert (loaded.max_position_embeddings, loaded.rope_parameters["rope_theta"]) == (2048, config.rope_theta)
    assert values["rope_theta"] == config.rope_theta  # for transformers 4


@pytest.mark.parametrize("encoder", ["clip_l14_336", "siglip_so400m_384"])
@pytest.mark.parametrize("decoder", ["vicuna15_7b", "llama32_1b", "mistral03_7b", "qwen25_0_5b", "qwen3_0_6b"])
def test_llavas_come_back(encoder, decoder, folder):
    config = LlavaConfig("llava", language(decoder), "bfloat16", "full", vision(encoder), ProjectorConfig("mlp2x_gelu"))
    values = hf.hf_llava_config(config, Ids, image_token_id=77, dtype="bfloat16", max_positions=2048)
    pixels = {"image_mean": list(config.vision.image_mean), "image_std": list(config.vision.image_std)}
    at = folder(values, preprocessor_config=pixels)
    assert folder_codec(at) is hf.CODEC and not hf.is_original(strict.read_config(at))
    assert hf.read_llava(at) == hf.Llava(config.vision, config.projector, config.language, 77)
    loaded = transformers.AutoConfig.from_pretrained(at)
    assert type(loaded) is transformers.LlavaConfig
    assert loaded.tie_word_embeddings == loaded.text_config.tie_word_embeddings == config.language.tie_embeddings
    assert (loaded.image_seq_length, loaded.image_token_id) == (config.vision.features_per_image, 77)


def test_models_that_transformers_has_not():
    both = dataclasses.replace(TINY, qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match="qkv_bias = True, out_bias = False and qk_norm = True is not a model"):
        decoder.hf_language_config(both, Ids, dtype="float32", max_positions=64)
    odd = dataclasses.replace(TINY, embed_dim=49)
    with pytest.raises(UserError, match="LlamaConfig of transformers refuses the model"):
        decoder.hf_language_config(odd, Ids, dtype="float32", max_positions=64)
    config = LlavaConfig("llava", TINY, "float32", "none", vision("clip_b32"), ProjectorConfig("linear"))
    with pytest.raises(UserError, match='projector.kind = "linear", LLaVA of transformers has only "mlp2x_gelu"'):
        hf.hf_llava_config(config, Ids, image_token_id=7, dtype="float32", max_positions=64)
    config = dataclasses.replace(config, projector=ProjectorConfig("mlp2x_gelu"))
    with pytest.raises(UserError, match="the image token has id 101 and the model 101 rows of embeddings; 102 are"):
        hf.hf_llava_config(config, Ids, image_token_id=101, dtype="float32", max_positions=64)


@pytest.mark.parametrize("changes", [{"architecture": "qwen2"}, {"out_bias": True}, {"architecture": "gpt2"}])
def test_an_architecture_has_its_own_biases_and_norms(changes):
    config = tiny_llava.tiny_config()
    config = dataclasses.replace(config, language=dataclasses.replace(config.language, **changes))
    with pytest.raises(UserError, match='architecture "(llama|qwen2|gpt2)" with .*qwen3: False, False, True'):
        build_model(config)


def test_a_kind_of_rotary_scaling_that_we_do_not_have():
    config = tiny_llava.tiny_config()
    scaling = RopeScaling(2.0, kind="dynamic")
    config = dataclasses.replace(config, language=dataclasses.replace(config.language, rope_scaling=scaling))
    with pytest.raises(UserError, match='rope_scaling.kind = "dynamic", expected linear, llama3, yarn'):
        build_model(config)


def test_a_mistral_keeps_its_class_and_no_window(folder):
    values = decoder.hf_language_config(language("mistral03_7b"), Ids, dtype="bfloat16", max_positions=2048)
    loaded = transformers.AutoConfig.from_pretrained(folder(values))
    assert (loaded.model_type, loaded.sliding_window) == ("mistral", None)


def test_an_encoder_between_clip_and_siglip_is_none_of_transformers():
    with pytest.raises(UserError, match="'pre_norm': False.* is not an encoder of transformers, which has clip_vision"):
        encoders.hf_vision_config(vision("clip_b32", pre_norm=False), dtype="float32")
