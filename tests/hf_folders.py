"""Hugging Face folders of small random models, made on the spot by transformers itself."""

from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from jaxvlm.config import ModelConfig
from jaxvlm.data.text.tokenizer import train_tokenizer
from tests.parity import pairs

WORDS = ["USER: <image>\nwhat color is it? ASSISTANT: red</s>", "is it green or blue? yes, no, it is red not green"]

# Content is a list of parts, as in the templates of transformers' own LLaVA: images first, then the text.
PARTS_TEMPLATE = """
{%- for message in messages %}
  {{- message.role | upper ~ ": " }}
  {%- for part in message.content if part.type == "image" %}{{ "<image>\n" }}{% endfor %}
  {%- for part in message.content if part.type == "text" %}{{ part.text ~ " " }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "ASSISTANT:" }}{% endif %}"""


def tokenizer(vocab_size: int, *, image_token: bool = True):
    """A tokenizer of few words, with "<image>" among its tokens or without."""
    made = train_tokenizer(WORDS, vocab_size)
    if image_token:
        return made
    backend = made.backend_tokenizer.to_str().replace('"<image>"', '"<picture>"')
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(made.backend_tokenizer).from_str(backend),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def write_llava(folder: Path, config: ModelConfig, *, decoder="llama", dtype="float32", shard="50GB", seed=0):
    """A LLaVA as `save_pretrained` writes it, with a tokenizer; returns the model."""
    pair = pairs.make_pair(config, decoder=decoder, seed=seed)
    hf = pair.hf.to(getattr(torch, dtype))
    words = tokenizer(config.language.vocab_size)
    hf.config.image_token_index = hf.config.image_token_id = words.convert_tokens_to_ids("<image>")
    hf.save_pretrained(folder, max_shard_size=shard)
    words.save_pretrained(folder)
    return hf


def write_vision(folder: Path, config: ModelConfig, *, seed=0):
    """The encoder alone."""
    pairs.make_pair(config, seed=seed).hf.model.vision_tower.save_pretrained(folder)


def write_language(folder: Path, config: ModelConfig, *, decoder="llama", seed=0, image_token=False):
    """The decoder alone, with a tokenizer that does not know "<image>"."""
    hf = pairs.make_pair(config, decoder=decoder, seed=seed).hf
    model = transformers.AutoModelForCausalLM.from_config(hf.config.text_config)
    model.model.load_state_dict(hf.model.language_model.state_dict())
    model.lm_head.load_state_dict(hf.lm_head.state_dict())
    model.save_pretrained(folder)
    tokenizer(config.language.vocab_size, image_token=image_token).save_pretrained(folder)


def write_image(path: Path):
    """A small picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 23, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
