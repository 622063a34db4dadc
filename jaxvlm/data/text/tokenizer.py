"""Tokenizers: trained on a recipe's own text, or loaded from a folder, a GGUF file or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jaxvlm.config import TokenizerConfig
from jaxvlm.data.records import IMAGE, VIDEO, Record, RecordError
from jaxvlm.data.text.gguf_tokenizer import gguf_tokenizer
from jaxvlm.data.text.marks import MediaToken
from jaxvlm.data.text.sentencepiece_tokenizer import convert
from jaxvlm.data.text.templates import TEMPLATES, Draft, TemplateScript
from jaxvlm.data.text.turns import check_turns
from jaxvlm.errors import UserError

# Llama's order, so that ids 0 to 2 mean what they mean there.
_SPECIALS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # for characters that are not in the training text
# How a tokenizer names its token of a placeholder, and spellings of those that do not name it.
_NAMES = {IMAGE: "image_token", VIDEO: "video_token"}
_SPELLINGS = {IMAGE: (IMAGE, "<|image_pad|>"), VIDEO: (VIDEO, "<|video_pad|>")}
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def load_tokenizer(config: TokenizerConfig, texts: Iterable[str] | None = None) -> PreTrainedTokenizerBase:
    """Loads or trains the tokenizer that a recipe names.

    Args:
      config: its `source` is "train", a folder, a GGUF file, or a name on the hub. Code in a folder or on the hub is
        never run.
      texts: the texts to train on (`training_texts`); other sources do not need them.

    Raises:
      UserError: the folder contains no tokenizer, the hub has none or cannot be reached, or `vocab_size` is too small.
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
            f"tokenizer.source = {config.source!r} contains none of {', '.join(_FILES)}; "
            "point it at a folder that a tokenizer's `save_pretrained` wrote"
        )
    try:
        loaded = AutoTokenizer.from_pretrained(config.source, trust_remote_code=False)
    except Exception as error:  # the hub client, HTTP, JSON and tokenizers raise a dozen unrelated types
        what = "cannot be read as a tokenizer" if folder.is_dir() else "is not a folder, and the hub did not return it"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"tokenizer.source = {config.source!r} {what} ({type(error).__name__}: {reason}); "
            "point tokenizer.source at a folder with a tokenizer's files"
        ) from error
    model = getattr(loaded, "vocab_file", None)
    if model and Path(model).name == "tokenizer.model" and not Path(model).with_name("tokenizer.json").is_file():
        return convert(loaded, Path(model))
    return loaded


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id for positions of image features: that of its image token, else of <unk>, padding or the end token.

    The image token is the one that the tokenizer names `image_token`, else "<image>", else Qwen's "<|image_pad|>".
    The model overwrites the embedding at these positions, so any id works.

    Raises:
      UserError: the tokenizer has none of these tokens.
    """
    spelling = _spelling(tokenizer, IMAGE)
    found = tokenizer.get_vocab()[spelling] if spelling else None
    for id in (found, tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if id is not None:
            return id
    raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no {IMAGE}, unk, pad or eos token; add {IMAGE} to it")


def image_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The spelling of the tokenizer's own token of an image; None: it has none."""
    return _spelling(tokenizer, IMAGE)


def media_tokens(tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> dict[str, MediaToken]:
    """The tokens of image and video placeholders; without a video token, videos have the id of images.

    The video token is the one that the tokenizer names `video_token`, else "<video>", else Qwen's "<|video_pad|>".
    """
    image, video = (_spelling(tokenizer, placeholder) for placeholder in (IMAGE, VIDEO))
    return {
        IMAGE: MediaToken(image_token_id, image or IMAGE),
        VIDEO: MediaToken(tokenizer.get_vocab()[video] if video else image_token_id, video or VIDEO),
    }


def _spelling(tokenizer: PreTrainedTokenizerBase, placeholder: str) -> str | None:
    """The spelling of the tokenizer's own token for a placeholder; None: it has none."""
    vocab = tokenizer.get_vocab()
    named = getattr(tokenizer, _NAMES[placeholder], None)
    return next((s for s in (named, *_SPELLINGS[placeholder]) if isinstance(s, str) and s in vocab), None)


def training_texts(records: Iterable[Record], template: str, system: str | None = None) -> Iterator[str]:
    """Yields the text of records as `template` writes it: with the words and the punctuation that training will see.

    Args:
      records: the records to train the tokenizer on.
      template: a name in `templates.TEMPLATES`.
      system: system message in place of the template's own; "": none.

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
            check_turns(record, documents=TEMPLATES[template].documents)
            draft = Draft()
            script.write(draft, record)
            yield IMAGE.join("".join(chunk) for chunk in draft.chunks)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-pair tokenizer like Llama's: a word with its space and punctuation ("▁shape?") can be one token.

    The same texts give the same tokenizer. It adds <s> in front, and splits unseen characters into bytes.

    Args:
      texts: the texts to train on. They are split at "<image>", "<s>" and "</s>", which are not learned from.
      vocab_size: the largest number of tokens, including the special ones and 256 bytes.

    Raises:
      UserError: `vocab_size` is too small for the characters of the texts.
    """
    specials = [*_SPECIALS.values(), IMAGE]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer("never")
    room = vocab_size - len(specials) - len(_BYTES)
    trainer = trainers.BpeTrainer(vocab_size=max(room, 0), show_progress=False)
    trained.train_from_iterator(_parts(texts), trainer)
    learned = json.loads(trained.to_str())["model"]
    if len(learned["vocab"]) > room:
        least = len(learned["vocab"]) + len(specials) + len(_BYTES)
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size} is too small for {len(specials)} special tokens, 256 bytes and the "
            f"characters of the training text; set it to at least {least}"
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
    """Splits before spaces and around newlines; a newline would otherwise be part of the word after it."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n+"), "isolated"), pre_tokenizers.Metaspace("▁", prepend_scheme)]
    )


def _parts(texts: Iterable[str]) -> Iterator[str]:
    """Splits texts at special tokens, and adds a space before each part where encoding will add one.

    Encoding adds one at the start of a text and after an image (the renderer encodes that text separately), but not
    after "</s>". So "USER:" is learned with the space and without it.
    """
    for text in texts:
        for chunk in text.split(IMAGE):
            for index, part in enumerate(chunk.replace("<s>", "</s>").split("</s>")):
                yield part if index or part.startswith(" ") else f" {part}"
