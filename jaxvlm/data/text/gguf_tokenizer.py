"""Reads the tokenizer of a GGUF file, the format of llama.cpp.

Source: docs/gguf.md of ggml for the metadata keys; src/llama-vocab.cpp of llama.cpp and the tokenizer.json of each
family for the way text is split into words.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jaxvlm.data.text.sentencepiece_tokenizer import CONTROL, USER_DEFINED, Pieces, sentencepiece_backend
from jaxvlm.errors import UserError
from jaxvlm.gguf_metadata import Metadata, read_metadata

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def gguf_tokenizer(source: Metadata | str | Path) -> PreTrainedTokenizerBase:
    """Returns the file's tokenizer, with its special tokens and its chat template.

    transformers can read the tokenizer of a GGUF file too, but it splits "smollm" words as GPT-2 does: two spaces
    before a number become two tokens instead of one.

    Args:
      source: a file, or its metadata if they were read already, since reading them takes seconds.

    Raises:
      UserError: the package gguf is missing, the file is not GGUF, or its kind of tokenizer is not supported.
    """
    metadata = source if isinstance(source, Metadata) else read_metadata(Path(source))
    kinds = {"gpt2": _byte_level_tokenizer, "llama": _sentencepiece_tokenizer}
    kind = metadata.value("tokenizer.ggml.model")
    if kind not in kinds:
        raise UserError(f'{metadata.path}: tokenizer.ggml.model = "{kind}", supported are gpt2 (byte-level) and llama')
    return kinds[kind](metadata)


def _byte_level_tokenizer(metadata: Metadata) -> PreTrainedTokenizerBase:
    """Byte-level BPE. The file stores tokens and merges, but only the name of the rule that splits text into words."""
    cut = metadata.value("tokenizer.ggml.pre")
    cutters = {
        # Source: tokenizer.json of SmolLM2, Qwen2 and Llama 3.
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]),
        "qwen2": _split(_WORDS % r"\p{N}"),
        "llama-bpe": _split(_WORDS % r"\p{N}{1,3}"),
    }
    if cut not in cutters:
        raise UserError(f'{metadata.path}: tokenizer.ggml.pre = "{cut}", supported are {", ".join(cutters)}')
    tokens = metadata.value("tokenizer.ggml.tokens")
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UserError(f"{metadata.path}: {len(tokens) - len(vocab)} of tokenizer.ggml.tokens occur twice")
    merges = [tuple(merge.split(" ")) for merge in metadata.value("tokenizer.ggml.merges")]
    is_llama3 = cut == "llama-bpe"
    # Llama 3's merge list is incomplete: a word that is a token is taken whole, without merges.
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=is_llama3))
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer, backend.decoder = cutters[cut], decoders.ByteLevel()
    _add_tokens(backend, tokens, metadata.value("tokenizer.ggml.token_type"))
    return _finished(metadata, backend, tokens, add_bos=bool(metadata.value("tokenizer.ggml.add_bos_token", is_llama3)))


def _split(words: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


def _special_tokens(metadata: Metadata, tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.value(f"tokenizer.ggml.{key}_token_id", required=False) for name, key in keys.items()}
    return {name: tokens[id] for name, id in ids.items() if id is not None}


def _sentencepiece_tokenizer(metadata: Metadata) -> PreTrainedTokenizerBase:
    """The tokenizer of Llama 2 and Mistral."""
    tokens = metadata.value("tokenizer.ggml.tokens")
    types = metadata.value("tokenizer.ggml.token_type")
    pieces = Pieces(
        texts=tokens,
        scores=metadata.value("tokenizer.ggml.scores"),
        types=types,
        dummy_prefix=bool(metadata.value("tokenizer.ggml.add_space_prefix", True)),
    )
    made = sentencepiece_backend(pieces)
    _add_tokens(made, tokens, types)
    return _finished(metadata, made, tokens, add_bos=bool(metadata.value("tokenizer.ggml.add_bos_token", True)))


def _add_tokens(made: Tokenizer, tokens: list[str], types: list[int]) -> None:
    made.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == CONTROL)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )


def _finished(metadata: Metadata, made: Tokenizer, tokens: list[str], *, add_bos: bool) -> PreTrainedTokenizerBase:
    """The tokenizer with the file's special tokens and template."""
    specials = _special_tokens(metadata, tokens)
    if add_bos:
        bos = specials["bos_token"]
        pair = [(bos, made.token_to_id(bos))]
        made.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", pair)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=metadata.value("tokenizer.chat_template", required=False),
        clean_up_tokenization_spaces=False,
        **specials,
    )
