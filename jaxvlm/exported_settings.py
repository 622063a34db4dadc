"""What a Hugging Face folder takes from the settings of the stage whose result it holds."""

from __future__ import annotations

import copy
from typing import Any

from jaxvlm.config import DataConfig
from jaxvlm.data.records import IMAGE
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.jinja_template import chat_template
from jaxvlm.data.text.templates import OWN_TEMPLATE
from jaxvlm.data.text.tokenizer import image_token_id


def exported_text(
    tokenizer: Any, data: DataConfig, date: str = "", *, alone: bool = False
) -> tuple[Any, tuple[int, ...], list[str]]:
    """A tokenizer that writes prompts as the training did, and what ends an answer.

    The chat templates are `TEMPLATES` in Jinja. Two differences remain: transformers tokenizes a prompt in one pass,
    and it takes "<image>" and the spelling of control tokens in any text for the tokens themselves.

    Args:
      tokenizer: a fast tokenizer of transformers; it is not changed.
      data: `template`, `system`, `stop_tokens` and `control_tokens` of the stage.
      date: as `config.date`.
      alone: whether it is a decoder's, without a processor.

    Returns:
      A copy of the tokenizer with the chat template, the ids that end an answer, and notes on what transformers does
      differently; usually none.

    Raises:
      UserError: no such template, or the tokenizer lacks a control token of the template.
    """
    renderer = Renderer(
        tokenizer,
        data.template,
        image_token_id=image_token_id(tokenizer),
        system=data.system,
        control_tokens=data.control_tokens,
        stop_tokens=data.stop_tokens,
        date=date,
    )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"  # for batches of prompts
    notes = []
    if data.template == OWN_TEMPLATE:
        if not renderer.takes_images and not alone:
            notes.append(
                f'the chat template is the tokenizer\'s own: write "{IMAGE}" and a newline before the question yourself'
            )
        if data.system is not None:
            notes.append("the chat template is the tokenizer's own: give the system message of the training yourself")
    else:
        tokenizer.chat_template, notes = chat_template(tokenizer, data.template, data.system, bos=alone)
    if renderer.needs_bare_ids:
        notes.append(
            "the tokenizer adds a BOS token that training does not have: pass add_special_tokens=False with a text of "
            "the chat template"
        )
    return tokenizer, renderer.stop_ids, notes
