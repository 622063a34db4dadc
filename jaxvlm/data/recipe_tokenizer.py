"""Builds the tokenizer of a recipe: the one that it names, or one trained on the text of all its stages."""

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
from jaxvlm.errors import UserError, listed
from jaxvlm.progress import progress_bar
from jaxvlm.runs import RunFolder


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Loads or trains the tokenizer of a recipe; its source may also be a run, which has one.

    Raises:
      UserError: it cannot be loaded, or it has more tokens than the model's vocabulary.
    """
    chosen = config.tokenizer
    if (run := RunFolder(chosen.source)).has_begun:
        chosen = dataclasses.replace(chosen, source=str(run.tokenizer))
    tokenizer = load_tokenizer(chosen, _texts(config) if chosen.source == "train" else None)
    check_vocab(tokenizer, config.model.language.vocab_size)
    return tokenizer


def check_vocab(tokenizer: PreTrainedTokenizerBase, rows: int, where: str = "") -> None:
    """Checks that every token has a row in the embedding; JAX would take the last row for those beyond.

    Args:
      rows: of the embedding.
      where: the folder that has both, if they do not come from a recipe.

    Raises:
      UserError: tokens without a row.
    """
    vocab = tokenizer.get_vocab()
    needed = 1 + max(vocab.values())
    if needed <= rows:
        return
    beyond = sorted((token for token, id in vocab.items() if id >= rows), key=vocab.__getitem__)
    message = f"the tokenizer has {needed} tokens, the model has room for {rows}"
    if where:
        raise UserError(
            f"{where}: {message}: {listed([repr(token) for token in beyond])} have no row in the embedding; add rows "
            "to it (resize_token_embeddings of transformers), or take these tokens out of the tokenizer"
        )
    raise UserError(f"{message}; set config.model.language.vocab_size to {needed} or more")


def saved_tokenizer(folder: Path, config: Config) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that a run saved in `folder` (`RunFolder.tokenizer`).

    Raises:
      UserError: as `build_tokenizer`.
    """
    tokenizer = load_tokenizer(dataclasses.replace(config.tokenizer, source=str(folder)))
    check_vocab(tokenizer, config.model.language.vocab_size, str(folder))
    return tokenizer


def _texts(config: Config) -> Iterator[str]:
    """Texts to train the tokenizer on. They come from all stages, so that each stage needs few tokens."""
    for name in config.stages:
        data = config.stage[name].data
        yield from training_texts(_records(load_mix(data)), data.template, data.system)


def _records(mix: Mix) -> Iterable[Record]:
    """The records that can be read; the index reports the others."""
    with progress_bar("reading texts for the tokenizer", len(mix), "record") as bar:
        for index in range(len(mix)):
            with contextlib.suppress(RecordError):
                yield mix[index]
            bar.update()
