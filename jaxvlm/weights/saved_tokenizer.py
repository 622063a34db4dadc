"""Saves a tokenizer so that transformers 4 and 5 load it, and how answers are generated with it.

transformers 5 writes names that transformers 4 does not know: a `tokenizer_class` "TokenizersBackend", and a list
`extra_special_tokens`, which 4 takes for a dict.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from jaxvlm.weights.codec import Export

_FAST = "PreTrainedTokenizerFast"  # both versions read tokenizer.json with it, whatever the model


def write_text_files(folder: Path, export: Export) -> None:
    """Writes the tokenizer's files, its chat template, and generation_config.json into a folder that exists."""
    tokenizer, chosen = export.tokenizer, export.generation
    save_tokenizer(tokenizer, folder)
    pad = tokenizer.pad_token_id
    sampling: dict[str, Any] = {"do_sample": chosen.temperature > 0}
    if chosen.temperature > 0:
        sampling |= {"temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": chosen.top_k}
    transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(export.stop_ids),
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        **sampling,
    ).save_pretrained(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template.

    Args:
      tokenizer: a fast tokenizer of transformers; it is not changed.
      folder: exists.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = _FAST
    extra = values.get("extra_special_tokens")
    if isinstance(extra, list):
        del values["extra_special_tokens"]
        values["additional_special_tokens"] = [getattr(token, "content", token) for token in extra]
    values["model_input_names"] = ["input_ids", "attention_mask"]  # 4's default has token types, which no decoder takes
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
