"""config.json of Hugging Face folders, read strictly.

The config class of transformers fills in absent fields. Then every field must be one that we map, one with its required
value, one without influence on features and logits, or at the class's default. Any other is an error, so that a
checkpoint never silently becomes another model. All problems of a file are in one message.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers

from jaxvlm.errors import UserError

CONFIG_FILE = "config.json"

# Without influence on features and logits: bookkeeping of transformers 4 and 5, token ids, dropout and
# initialisation, and the length of rows, since rotary positions have no end (windows are checked elsewhere).
_IRRELEVANT_NAMES = """
_name_or_path name_or_path _commit_hash _attn_implementation_autoset attn_implementation architectures auto_map dtype
torch_dtype transformers_version transformers.js_config model_type is_llama_config unsloth_fixed use_cache return_dict
output_attentions output_hidden_states torchscript use_bfloat16 tf_legacy_loss tokenizer_class prefix id2label label2id
num_labels problem_type finetuning_task task_specific_params chunk_size_feed_forward is_encoder_decoder
tie_encoder_decoder cross_attention_hidden_size bos_token_id eos_token_id pad_token_id sep_token_id
decoder_start_token_id attention_dropout dropout initializer_range initializer_factor pretraining_tp
max_position_embeddings max_sequence_length max_window_layers use_sliding_window unsloth_version
"""
IRRELEVANT = frozenset(_IRRELEVANT_NAMES.split()) | frozenset(transformers.GenerationConfig().to_dict())


def read_config(folder: str | Path) -> dict[str, Any]:
    """The dict in config.json.

    Raises:
      UserError: there is no such file, or it is not a JSON object.
    """
    return read_json(Path(folder) / CONFIG_FILE, "point at a folder that `save_pretrained` of a model wrote")


class Report:
    """Collects the problems of one file."""

    def __init__(self, where: str):
        self.where = where
        self._problems: list[str] = []

    def add(self, name: str, value: Any, expected: str) -> None:
        """Adds a problem: a field with an unsupported value, `value` as in JSON."""
        self._problems.append(f"{name} = {json.dumps(value, default=str)}, supported: {expected}")

    def log(self, problem: str) -> None:
        """Adds a problem in words."""
        self._problems.append(problem)

    @property
    def problems(self) -> tuple[str, ...]:
        """All so far."""
        return tuple(self._problems)

    def error(self) -> UserError:
        """All problems in one message."""
        return UserError(f"{self.where} is not a supported model: " + "; ".join(self._problems))

    def check(self) -> None:
        """Raises `UserError` if there are problems."""
        if self._problems:
            raise self.error()

    def finish(self, config: Any) -> Any:
        """Returns `config`, which is not None without problems; else raises `UserError`."""
        self.check()
        assert config is not None  # else there was something to report
        return config


def unknown(kind: Any, known: Iterable[str], where: str) -> UserError:
    """The error about a `model_type` that is not supported."""
    hint = ""
    if str(kind).startswith("siglip2"):
        hint = (
            " (siglip2 is NaFlex, for images of any shape; SigLIP 2 of a fixed size, such as "
            'google/siglip2-base-patch16-224, has model_type "siglip")'
        )
    return UserError(f"{where}: model_type {json.dumps(kind)} is not supported{hint}; known: {', '.join(known)}")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The dict in a JSON file; raises `UserError` with the advice at its end if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {advice}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {advice}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected a JSON object; {advice}")
    return values


def fill(cls: type, values: Mapping[str, Any], prefix: str, report: Report) -> dict[str, Any] | None:
    """The values with the class's defaults; None, and a problem, if it refuses them."""
    try:
        # A copy, since the class changes its arguments.
        given = {name: value for name, value in copy.deepcopy(dict(values)).items() if name != "model_type"}
        return cls(**given).to_dict()
    except Exception as error:  # its checks raise a dozen unrelated types
        what = prefix.rstrip(".") or "it"
        report.log(f"{what} is refused by transformers ({type(error).__name__}: {' '.join(str(error).split())})")
        return None


def check_fields(
    cls: type,
    values: Mapping[str, Any],
    filled: Mapping[str, Any],
    prefix: str,
    report: Report,
    *,
    mapped: set[str],
    required: Mapping[str, tuple[Any, str]],
    irrelevant: frozenset[str],
) -> None:
    """Reports every field that is not accounted for.

    Args:
      cls: the config class.
      values: the file's own fields, since a class may have dropped one.
      filled: the fields after the class has filled in defaults.
      prefix: of the fields' names, for messages.
      report: for the problems.
      mapped: fields that the caller reads.
      required: required values of fields, and the reasons.
      irrelevant: fields without influence for this kind of part, in addition to the common ones.
    """
    defaults = cls().to_dict()
    for name, value in {**values, **filled}.items():
        if name in mapped or name in IRRELEVANT | irrelevant:
            continue
        if name in required:
            expected, why = required[name]
            if value != expected:
                report.add(prefix + name, value, requirement(expected, why))
        elif value is not None and not (name in defaults and value == defaults[name]):
            report.log(f"{prefix}{name} = {json.dumps(value, default=str)}, an unknown field")


def requirement(expected: Any, why: str) -> str:
    """A required value, for messages."""
    return json.dumps(expected) + (f" ({why})" if why else "")


def make(cls: type, **values: Any) -> dict[str, Any]:
    """The config's dict without fields at None and labels of classifiers."""
    try:
        made = cls(**values).to_dict()
    except Exception as error:  # its checks raise a dozen unrelated types
        raise UserError(f"{cls.__name__} of transformers refuses the model ({' '.join(str(error).split())})") from error
    noise = {"id2label", "label2id", "_name_or_path"}
    return {name: value for name, value in made.items() if value is not None and name not in noise}
