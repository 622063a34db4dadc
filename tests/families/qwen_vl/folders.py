"""Folders of tiny Qwen-VLs, as `save_pretrained` writes them, with the processor files of the hub."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from PIL import Image
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from tests.families.qwen_vl import pairs

# The output format of the published templates.
TEMPLATE = """
{%- for message in messages %}
  {%- if loop.first and message.role != "system" and SYSTEM %}
    {{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" }}
  {%- endif %}
  {{- "<|im_start|>" ~ message.role ~ "\\n" }}
  {%- if message.content is string %}{{ message.content }}{% else %}
    {%- for part in message.content %}
      {%- if part.type == "image" %}{{ "<|vision_start|><|image_pad|><|vision_end|>" }}
      {%- elif part.type == "video" %}{{ "<|vision_start|><|video_pad|><|vision_end|>" }}
      {%- else %}{{ part.text }}{% endif %}
    {%- endfor %}
  {%- endif %}
  {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
WORDS = ["what is it? how many? a red circle, two blue squares; yes, no, one, 12.5 seconds"]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SPECIALS += ("<|video_pad|>",)


def tokenizer(kind: str, more: Sequence[str] = ()):
    """A byte-level tokenizer with the control tokens of the published ones, and their splits; `more` to learn from."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, level])
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([*WORDS, *more], trainer)
    made.add_special_tokens(list(SPECIALS))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIALS[3:]),
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE.replace("SYSTEM", "false" if kind == "qwen3_vl" else "true").strip(),
    )


def write_folder(folder: Path, kind: str, *, seed: int = 0):
    """A random model of a kind with tokenizer and processor; returns the model."""
    words = tokenizer(kind)
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    hf = pairs.make_hf(pairs.hf_config(kind, vocab_size=304, **ids), seed)
    hf.save_pretrained(folder)
    words.save_pretrained(folder)
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.2, 0.25], "patch_size": 4, "merge_size": 2}
    values = {"min_pixels": 128, "max_pixels": 2560, "image_processor_type": "Qwen2VLImageProcessor"}
    values |= pixels | {"temporal_patch_size": 2, "processor_class": pairs.PROCESSORS[kind]}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    # The limits of the third kind are of all four frames.
    values |= {"max_pixels": 640 * (4 if kind == "qwen3_vl" else 1), "fps": 2.0, "min_frames": 4, "max_frames": 4}
    values |= {"video_processor_type": f"{'Qwen3VL' if kind == 'qwen3_vl' else 'Qwen2VL'}VideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(values))
    return hf


def write_images(folder: Path) -> list[str]:
    """Pictures of noise of odd sizes."""
    names = []
    for number, (height, width) in enumerate([(33, 21), (17, 60), (48, 40), (9, 9)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        names.append(f"{number}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    return names
