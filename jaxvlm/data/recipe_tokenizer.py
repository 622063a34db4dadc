"""The tokenizer that a recipe names, or one trained on the text of all its stages."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from jaxvlm.config import Config
from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.sources.mix import Mix, load_mix
from jaxvlm.data.text.tokenizer import load_tokenizer, training_texts
from jaxvlm.errors import UserError


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Loads or trains the tokenizer of a recipe.

    Raises:
      UserError: it cannot be loaded, or has more tokens than the model.
    """
    trains = config.tokenizer.source == "train"
    tokenizer = load_tokenizer(config.tokenizer, _texts(config) if trains else None)
    if len(tokenizer) > config.model.language.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model room for {config.model.language.vocab_size}; "
            f"set config.model.language.vocab_size to {len(tokenizer)} or more"
        )
    return tokenizer


def saved_tokenizer(folder: Path, config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer that a run saved in `folder` (`RunFolder.tokenizer`)."""
    return load_tokenizer(dataclasses.replace(config.tokenizer, source=str(folder)))


def _texts(config: Config) -> Iterator[str]:
    """The text of all stages, from which the recipe's own tokenizer is trained."""
    for name in config.stages:
        data = config.stage[name].data
        yield from training_texts(_records(load_mix(data)), data.template, data.system)


def _records(mix: Mix) -> Iterable[Record]:
    """The records that can be read; the index reports the others."""
    for index in range(len(mix)):
        with contextlib.suppress(RecordError):
            yield mix[index]
