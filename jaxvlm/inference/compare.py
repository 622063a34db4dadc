"""Logits of one prompt from our model and from transformers in torch, for comparison."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from jaxvlm.data.records import IMAGE, Record, Turn
from jaxvlm.errors import UserError
from jaxvlm.families.build import build_model
from jaxvlm.families.sources import folder_codec
from jaxvlm.inference.engine import Engine
from jaxvlm.restore import Run


def logits_of_run(opened: Run, images: list[Path], prompt: str) -> np.ndarray:
    """float32[T, V], logits of a run's model after each token of a question, computed in float32.

    Args:
      images: files, placed before the question.
      prompt: the question.
    """
    config = dataclasses.replace(opened.model.config, compute_dtype="float32")
    text = f"{IMAGE}\n" * len(images) + prompt
    record = Record("prompt", (Turn("user", text),), tuple(map(str, images)), "--prompt")
    model = build_model(config, dict(opened.model.adapters))
    return dataclasses.replace(Engine.of(opened), model=model).logits(record)


def logits_of_folder(folder: Path, images: list[Path], prompt: str) -> np.ndarray:
    """float32[T, V], the same for a Hugging Face folder, from transformers in torch with the folder's own processor.

    Raises:
      UserError: torch is not installed, transformers cannot load the folder, or its chat template drops the question.
    """
    reference = folder_codec(folder).reference
    if reference is None:
        raise UserError(f"{folder} has no model with logits")
    try:
        import torch
    except ImportError as error:
        raise UserError(f"to run {folder} torch is needed: pip install torch") from error
    try:
        model = reference.model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        processor = reference.processor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"transformers cannot load {folder}: {error}") from error
    text = _prompt_text(processor, reference.image_token, folder, len(images), prompt)
    try:
        with torch.no_grad():
            return model(**reference.inputs(processor, text, images)).logits[0].float().numpy()
    except (RuntimeError, ValueError) as error:  # such as sizes that the config does not have
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"transformers cannot run {folder} on this question: {reason}") from error


def _prompt_text(processor: Any, image_token: str, folder: Path, images: int, prompt: str) -> str:
    """A question as the folder's chat template writes it: from parts, or from one text if it takes no parts.

    Raises:
      UserError: it drops the question or an image either way.
    """
    parts = [*[{"type": "image"}] * images, {"type": "text", "text": prompt}]
    for content in (f"{IMAGE}\n" * images + prompt, parts):
        messages = [{"role": "user", "content": content}]
        with contextlib.suppress(ValueError, TypeError, jinja2.TemplateError):  # no template, or it takes the other
            text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            if prompt.strip() in text and text.count(image_token) == images:
                return text
    raise UserError(
        f"the chat template of {folder} does not write a question with {images} images, neither as one text nor as a "
        "list of parts; give the folder a template that does (chat_template.jinja)"
    )
