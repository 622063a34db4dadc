"""Tokenizers: one trained on a recipe's own text, or one from a folder or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jaxvlm.config import TokenizerConfig
from jaxvlm.data.records import IMAGE, Record, RecordError
from jaxvlm.data.text.gguf_tokenizer import gguf_tokenizer
from jaxvlm.data.text.templates import TEMPLATES, Draft, TemplateScript
from jaxvlm.data.text.turns import check_turns
from jaxvlm.errors import UserError

# Llama's order, so that ids 0 to 2 mean what they mean there.
_SPECIALS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # for characters that are not in the training text
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def load_tokenizer(config: TokenizerConfig, texts: Iterable[str] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that a recipe names.

    Args:
      config: `source` "train", a folder, a GGUF file, or a name on the hub; code that comes with one is never run.
      texts: the training text (`training_texts`); not needed for other sources.

    Raises:
      UserError: the folder has no tokenizer, the hub has none or cannot be reached, or `vocab_size` is too small.
    """
    if config.source == "train":
        if texts is None:
            raise ValueError('load_tokenizer needs texts to train on when config.source is "train"')
        return train_tokenizer(texts, config.vocab_size)
    folder = Path(config.source)
    if folder.is_file():
        return gguf_tokenizer(folder)
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        raise UserError(
            f"tokenizer.source = {config.source!r} holds none of {', '.join(_FILES)}; "
            "point it at a folder that `save_pretrained` of a tokenizer wrote"
        )
    try:
        return AutoTokenizer.from_pretrained(config.source, trust_remote_code=False)
    except Exception as error:  # of the hub client, of HTTP, of JSON, of tokenizers: a dozen unrelated types
        what = "cannot be read as a tokenizer" if folder.is_dir() else "is no folder, and the hub did not give it"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"tokenizer.source = {config.source!r} {what} ({type(error).__name__}: {reason}); "
            "point tokenizer.source at a folder with a tokenizer's files"
        ) from error


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The placeholder id of image features: "<image>", or else <unk>, padding or end.

    The model overwrites the embedding there, so any id serves.

    Raises:
      UserError: the tokenizer has none of them.
    """
    found = tokenizer.get_vocab().get(IMAGE)
    for id in (found, tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if id is not None:
            return id
    raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no {IMAGE}, unk, pad or eos token; add {IMAGE} to it")


def training_texts(records: Iterable[Record], template: str, system: str | None = None) -> Iterator[str]:
    """The text of records as `template` writes it, to train a tokenizer on.

    Args:
      records: those to train on.
      template: a name in `conversation.TEMPLATES`.
      system: system message instead of the template's own; "": none.

    Raises:
      UserError: no such template.
    """
    if template not in TEMPLATES:
        raise UserError(
            f'a tokenizer cannot be trained for template "{template}"; templates: {", ".join(TEMPLATES)} '
            "(config.data.template)"
        )
    tokens = {"{bos}": _SPECIALS["bos_token"], "{eos}": _SPECIALS["eos_token"]}
    script = TemplateScript(TEMPLATES[template], system, tokens)
    for record in records:
        with contextlib.suppress(RecordError):  # the index reports records that cannot be rendered
            check_turns(record)
            draft = Draft()
            script.write(draft, record)
            yield IMAGE.join("".join(chunk) for chunk in draft.chunks)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-pair tokenizer like Llama's: a word with its space and punctuation ("▁shape?") can be one token.

    The same texts give the same tokenizer. It adds <s> in front, and characters it has never seen become bytes.

    Args:
      texts: the training text; it is split at "<image>", "<s>" and "</s>".
      vocab_size: at most that many tokens, the special ones and 256 bytes among them.

    Raises:
      UserError: `vocab_size` has no room for the characters of the texts.
    """
    specials = [*_SPECIALS.values(), IMAGE]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer("never")
    room = vocab_size - len(specials) - len(_BYTES)
    trainer = trainers.BpeTrainer(vocab_size=max(room, 0), show_progress=False)
    trained.train_from_iterator(_stretches(texts), trainer)
    learned = json.loads(trained.to_str())["model"]
    if len(learned["vocab"]) > room:
        least = len(learned["vocab"]) + len(specials) + len(_BYTES)
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size} is too small for {len(specials)} special tokens, 256 bytes and the "
            f"characters of the training text; it must be {least} at least"
        )
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocab = {token: id for id, token in enumerate(dict.fromkeys([*specials, *_BYTES, *pieces]))}
    merges = [tuple(pair) for pair in learned["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = _pre_tokenizer("first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bos = _SPECIALS["bos_token"]
    backend.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, vocab[bos])])
    backend.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, extra_special_tokens=[IMAGE], clean_up_tokenization_spaces=False, **_SPECIALS
    )


def _pre_tokenizer(prepend_scheme: str) -> pre_tokenizers.PreTokenizer:
    """Splits before spaces, and around newlines, which would otherwise be part of the word after them."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n+"), "isolated"), pre_tokenizers.Metaspace("▁", prepend_scheme)]
    )


def _stretches(texts: Iterable[str]) -> Iterator[str]:
    """Texts split at special tokens, with a space before a piece wherever encoding will put one.

    Encoding puts it at the start of a text and of what follows an image (the renderer encodes these apart), not after
    "</s>": "USER:" is learned with and without it.
    """
    for text in texts:
        for chunk in text.split(IMAGE):
            for index, stretch in enumerate(chunk.replace("<s>", "</s>").split("</s>")):
                yield stretch if index or stretch.startswith(" ") else f" {stretch}"
