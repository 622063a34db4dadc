"""Fast tokenizers from SentencePiece models: of a folder that has only a tokenizer.model, and of GGUF files.

The pieces keep SentencePiece's own scores, which decide the merges. (A converter that orders merges otherwise, or trims
spaces, gives other ids for runs of spaces, tabs and indentation.)

Source: SentencePiece (arXiv:1808.06226), src/sentencepiece_model.proto and src/bpe_model.cc.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jaxvlm.errors import UserError

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6  # types of pieces; GGUF has the same numbers
_SPACE = "▁"
_BPE = 2  # a value of `model_type`
# Read by both tokenizers of a converted one: words, runs of spaces, tabs, indentation, digits, bytes.
PROBE = (
    "Hello  world,   what\n\nis this?\tA tab\t\tand\n    def f(x):\n        return x  # 3.14 12345\n"
    "            deep   \n é 漢字 🙂 a\u00a0b <x> www.example.com  "
)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of a SentencePiece model, and how it prepares text."""

    texts: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    is_bpe: bool = True
    dummy_prefix: bool = True  # a space before the text
    every_segment: bool = True  # also after each special token, as the first Llama tokenizers
    remove_extra_spaces: bool = False
    charsmap: bytes = b""  # normalisation, compiled by SentencePiece


def sentencepiece_backend(pieces: Pieces) -> Tokenizer:
    """The tokenizer of a SentencePiece model, without special tokens."""
    unknown = next((i for i, kind in enumerate(pieces.types) if kind == UNKNOWN), None)
    has_bytes = BYTE in pieces.types
    if pieces.is_bpe:
        vocab = {text: i for i, text in enumerate(pieces.texts)}
        unk_token = None if unknown is None else pieces.texts[unknown]
        model: models.Model = models.BPE(
            vocab, _merges(pieces), unk_token=unk_token, fuse_unk=True, byte_fallback=has_bytes
        )
    else:
        scored = list(zip(pieces.texts, map(float, pieces.scores), strict=True))
        model = models.Unigram(scored, unk_id=unknown, byte_fallback=has_bytes)
    made = Tokenizer(model)
    steps: list[Any] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.remove_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.dummy_prefix and pieces.every_segment:
        steps.append(normalizers.Prepend(_SPACE))
    elif pieces.dummy_prefix:
        made.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "first", split=False)
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if pieces.dummy_prefix else []
    made.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return made


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those with the highest score first."""
    usable = {
        text: score
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.types, strict=True)
        if kind not in (UNKNOWN, CONTROL, UNUSED, BYTE)
    }
    ranked = sorted(usable, key=lambda text: -usable[text])  # stable: of equal scores the lower id
    return [
        (text[:at], text[at:])
        for text in ranked
        for at in range(1, len(text))
        if text[:at] in usable and text[at:] in usable
    ]


def convert(loaded: PreTrainedTokenizerBase, model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a tokenizer.model with the special tokens and the template that transformers has loaded.

    Raises:
      UserError: the model cannot be read, or the ids of a probe are not those of SentencePiece.
    """
    try:
        original = sentencepiece.SentencePieceProcessor(str(model))
        proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())  # type: ignore[attr-defined]
    except Exception as error:  # of SentencePiece and of protobuf
        raise UserError(f"{model} cannot be read as a SentencePiece model ({error}); copy it again") from error
    settings = model.with_name("tokenizer_config.json")
    config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    spec, algorithm = proto.normalizer_spec, proto.trainer_spec.model_type
    made = sentencepiece_backend(
        Pieces(
            texts=[piece.piece for piece in proto.pieces],
            scores=[piece.score for piece in proto.pieces],
            types=[piece.type for piece in proto.pieces],
            is_bpe=algorithm == _BPE,
            dummy_prefix=spec.add_dummy_prefix and config.get("add_prefix_space", True) is not False,
            every_segment=config.get("legacy", True) is not False,
            remove_extra_spaces=spec.remove_extra_whitespaces,
            charsmap=spec.precompiled_charsmap,
        )
    )
    added = sorted(loaded.added_tokens_decoder.items())
    made.add_tokens([token for _, token in added])
    moved = [token.content for i, token in added if made.token_to_id(token.content) != i]
    if moved:
        raise UserError(
            f"{model}: its tokenizer_config.json gives {', '.join(moved)} other ids than the model has room for"
        )
    made.post_processor = loaded.backend_tokenizer.post_processor
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=loaded.chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=loaded.model_max_length,
        padding_side=loaded.padding_side,
        **loaded.special_tokens_map,
    )
    tokenizer.name_or_path = loaded.name_or_path
    _compare(tokenizer, original, model)
    return tokenizer


def _compare(tokenizer: Any, original: Any, model: Path) -> None:
    ids, expected = tokenizer(PROBE, add_special_tokens=False).input_ids, original.encode(PROBE)
    if ids != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), min(len(ids), len(expected))
        )
        theirs = [original.id_to_piece(i) for i in expected[at : at + 3]]
        raise UserError(
            f"the tokenizer made of {model} splits text otherwise than SentencePiece does: "
            f"{tokenizer.convert_ids_to_tokens(ids[at : at + 3])} for {theirs}; give a folder with a tokenizer.json"
        )
