"""The small files of a model folder: stop tokens, sampling, longest row and the chat template of processors.

Source: transformers generation/configuration_utils.py; `max_position_embeddings` of a model's config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxvlm.errors import UserError
from jaxvlm.weights.hf.strict import CONFIG_FILE, read_json

_REMEDY = "fix or remove it"
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}  # transformers' values of what a file leaves out
# Other fields of a generation_config.json that change an answer.
_OTHER_NAMES = """
bad_words_ids begin_suppress_tokens encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id guidance_scale length_penalty max_new_tokens
min_length min_new_tokens min_p no_repeat_ngram_size num_beams penalty_alpha repetition_penalty sequence_bias
stop_strings suppress_tokens typical_p
"""


def read_stop_tokens(folder: Path, tokenizer: Any) -> tuple[str, ...]:
    """The spellings of `eos_token_id` in generation_config.json, except the tokenizer's own end token.

    Raises:
      UserError: an id that the tokenizer does not have.
    """
    ids = _generation(folder).get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    known = {id: token for token, id in tokenizer.get_vocab().items()}
    if unknown := [id for id in ids if id not in known]:
        raise UserError(
            f"eos_token_id has {unknown} and the tokenizer no such token ({folder / 'generation_config.json'}); "
            f"{_REMEDY}"
        )
    return tuple(known[id] for id in ids if id != tokenizer.eos_token_id)


def read_sampling(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of generation_config.json as those of `config.generation`, and those that we do not have."""
    values = _generation(folder)
    given = {name: values[name] for name in _SAMPLING if values.get(name) is not None}
    others = {name: values[name] for name in _OTHER_NAMES.split() if values.get(name) not in (None, 1, 0, [])}
    return _SAMPLING | given if values.get("do_sample") else {}, others


def read_max_positions(folder: Path) -> int | None:
    """`max_position_embeddings` of the decoder in config.json, in tokens; None if the file has none."""
    path = folder / CONFIG_FILE
    values = read_json(path, _REMEDY) if path.is_file() else {}
    found = (values.get("text_config") or values).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def adopt_processor_template(tokenizer: Any, folder: Path) -> None:
    """Gives a tokenizer without a chat template that of chat_template.json, where old processors store it.

    Raises:
      UserError: the file has no text.
    """
    path = folder / "chat_template.json"
    if tokenizer.chat_template or not path.is_file():
        return
    template = read_json(path, _REMEDY).get("chat_template")
    if not isinstance(template, str):
        raise UserError(f"chat_template = {json.dumps(template)}, expected a text ({path}); {_REMEDY}")
    tokenizer.chat_template = template


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path, _REMEDY) if path.is_file() else {}
