"""The small files of an exported LLaVA folder: tokenizer, chat template, image processor, stop tokens.

With them transformers' `AutoProcessor` gives the ids and pixels of `data/text/conversation.py` and
`data/media/images.py`. The chat templates are `TEMPLATES` in Jinja. Two differences remain:
transformers tokenizes a prompt in one pass, and it takes "<image>" and the spelling of control tokens in any text for
the tokens themselves.

Source: transformers models/llava/processing_llava.py, image_processing_llava.py and processing_utils.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken

from jaxvlm.config import DataConfig, VisionConfig
from jaxvlm.data.records import IMAGE
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.jinja_template import chat_template
from jaxvlm.data.text.templates import OWN_TEMPLATE
from jaxvlm.errors import UserError
from jaxvlm.families.llava.config import LlavaMedia
from jaxvlm.families.llava.image_processor import image_processor
from jaxvlm.weights.saved_tokenizer import save_tokenizer


def ensure_image_token(tokenizer: Any) -> tuple[Any, int, list[str]]:
    """Returns a tokenizer with "<image>" as one special token, as `LlavaProcessor` needs.

    The caller checks that the model has a row for its id (`hf.hf_llava_config` does): Vicuna's 32,000
    rows have no free one, Qwen's tokenizers have fewer tokens than the model has rows.

    Args:
      tokenizer: of transformers; it is not changed.

    Returns:
      The tokenizer or an extended copy of it, the token's id, and the tokens that were added ([] or ["<image>"]).
    """
    known = tokenizer.get_vocab().get(IMAGE)
    if known is not None and IMAGE in tokenizer.all_special_tokens:
        return tokenizer, known, []
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [AddedToken(IMAGE, normalized=False, special=True)]},
        replace_extra_special_tokens=False,
    )
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE), [] if known is not None else [IMAGE]


def write_processor(folder: str | Path, tokenizer: Any, vision: VisionConfig, data: DataConfig) -> list[str]:
    """Writes the tokenizer's files, the chat template, preprocessor_, processor_ and generation_config.json.

    The image processor is LLaVA's for aspect "pad", CLIP's for "square" and SigLIP's for "squeeze", with the encoder's
    own mean and standard deviation.

    Args:
      folder: created if absent; files of these names are overwritten.
      tokenizer: a fast tokenizer of transformers with "<image>" (`ensure_image_token`); it is not changed.
      vision: of the model.
      data: `template`, `system`, `stop_tokens` and `aspect` of the stage whose result is exported.

    Returns:
      Notes on what transformers does differently; usually none.

    Raises:
      UserError: no such template, or the tokenizer lacks "<image>" or a control token of the template.
    """
    image_id = tokenizer.get_vocab().get(IMAGE)
    if image_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no {IMAGE}, without which no LLaVA can be exported")
    renderer = Renderer(
        tokenizer, data.template, image_token_id=image_id, system=data.system, stop_tokens=data.stop_tokens
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"  # for batches of prompts
    notes = _set_chat_template(tokenizer, renderer, data)
    save_tokenizer(tokenizer, folder)
    assert isinstance(data.media, LlavaMedia)
    _write(folder / "preprocessor_config.json", image_processor(vision, data.media.aspect))
    _write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": vision.patch_size,
            "vision_feature_select_strategy": "default" if vision.class_token else "full",
            "num_additional_image_tokens": int(vision.class_token),  # the class token, which "default" removes
        },
    )
    pad = tokenizer.pad_token_id
    transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(renderer.stop_ids),
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        do_sample=False,
    ).save_pretrained(folder)
    return notes


def _set_chat_template(tokenizer: Any, renderer: Renderer, data: DataConfig) -> list[str]:
    """Gives a tokenizer the chat template of the training; returns notes on what it does not write."""
    notes = []
    if data.template == OWN_TEMPLATE:
        if not renderer.takes_images:
            notes.append(
                f'the chat template is the tokenizer\'s own: write "{IMAGE}" and a newline before the question yourself'
            )
        if data.system is not None:
            notes.append("the chat template is the tokenizer's own: give the system message of the training yourself")
    else:
        tokenizer.chat_template, notes = chat_template(tokenizer, data.template, data.system)
    if renderer.needs_bare_ids:
        notes.append(
            "the tokenizer adds a BOS token that training does not have: pass add_special_tokens=False with a text of "
            "the chat template"
        )
    return notes


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
