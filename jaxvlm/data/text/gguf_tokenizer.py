"""The tokenizer of a GGUF file, llama.cpp's format.

Source: the metadata keys, docs/gguf.md of ggml; how text is cut into words, llama.cpp's src/llama-vocab.cpp and each
family's tokenizer.json.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jaxvlm.errors import UserError
from jaxvlm.gguf_metadata import Metadata, read_metadata

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def gguf_tokenizer(source: Metadata | str | Path) -> PreTrainedTokenizerBase:
    """The file's tokenizer, with its special tokens and its chat template.

    transformers reads a GGUF's tokenizer too, but cuts "smollm" words as GPT-2 does: two spaces before a number become
    two tokens instead of one.

    Args:
      source: a file, or its metadata: reading them takes seconds.

    Raises:
      UserError: the package gguf is missing, the file is not GGUF, or its kind of tokenizer is unknown.
    """
    metadata = source if isinstance(source, Metadata) else read_metadata(Path(source))
    kinds = {"gpt2": _byte_level_tokenizer, "llama": _sentencepiece_tokenizer}
    kind = metadata.value("tokenizer.ggml.model")
    if kind not in kinds:
        raise UserError(f'{metadata.path}: tokenizer.ggml.model = "{kind}", supported are gpt2 (byte-level) and llama')
    return kinds[kind](metadata)


def _byte_level_tokenizer(metadata: Metadata) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding; the file has tokens, merges, and the pre-tokenizer's name."""
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
    # A word that is a token needs no merges in Llama 3, whose list lacks some.
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=is_llama3))
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer, backend.decoder = cutters[cut], decoders.ByteLevel()
    types = metadata.value("tokenizer.ggml.token_type")
    added = [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)
    specials = _special_tokens(metadata, tokens)
    if metadata.value("tokenizer.ggml.add_bos_token", is_llama3):
        bos = specials["bos_token"]
        backend.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, vocab[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.value("tokenizer.chat_template", required=False),
        clean_up_tokenization_spaces=False,
        **specials,
    )


def _split(words: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


def _special_tokens(metadata: Metadata, tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.value(f"tokenizer.ggml.{key}_token_id", required=False) for name, key in keys.items()}
    return {name: tokens[id] for name, id in ids.items() if id is not None}


def _sentencepiece_tokenizer(metadata: Metadata) -> PreTrainedTokenizerBase:
    """The tokenizer of Llama 2 and Mistral, read by transformers."""
    if not metadata.value("tokenizer.ggml.add_space_prefix", True):
        raise UserError(
            f"{metadata.path}: tokenizer.ggml.add_space_prefix is false, which transformers does not read of a GGUF; "
            "point tokenizer.source at the model's Hugging Face folder"
        )
    return AutoTokenizer.from_pretrained(str(metadata.path.parent), gguf_file=metadata.path.name)
