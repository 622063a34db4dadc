"""Saves a tokenizer so that transformers 4 and 5 load it.

transformers 5 writes names that transformers 4 does not know: a `tokenizer_class` "TokenizersBackend", and a list
`extra_special_tokens`, which 4 takes for a dict.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FAST = "PreTrainedTokenizerFast"  # both versions read tokenizer.json with it, whatever the model


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
