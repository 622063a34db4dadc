"""Tokens as text: the bytes of ids, and the characters of bytes that several tokens share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode


@dataclasses.dataclass(frozen=True)
class Token:
    """An entry of a vocabulary."""

    raw: str  # as spelled in the vocabulary; "" if it has no such id
    text: bytes | None  # UTF-8, maybe a part of a character; None for control tokens and unknown ids


@dataclasses.dataclass(frozen=True)
class Span:
    """A part of a token: characters, or bytes of characters that begin or end in another token."""

    text: str  # for bytes their hexadecimal codes: "F0 9F"
    is_bytes: bool = False


class Vocabulary:
    """Ids to tokens, of byte-level tokenizers (GPT-2, Qwen2) and of SentencePiece-like ones (Llama)."""

    def __init__(self, tokenizer: Any):
        """`tokenizer`: a fast tokenizer of transformers."""
        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        self._byte_of: dict[str, int] = {}
        if "ByteLevel(" in repr(tokenizer.backend_tokenizer.decoder):
            self._byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        self._known: dict[int, Token] = {}

    def __getitem__(self, id: int) -> Token:
        """The token of an id, any number."""
        token = self._known.get(id)
        if token is None:
            token = self._known[id] = self._look_up(id)
        return token

    def _look_up(self, id: int) -> Token:
        if id in self._added:
            added = self._added[id]
            return Token(added.content, None if added.special else added.content.encode())
        raw = self._tokenizer.convert_ids_to_tokens(id) if 0 <= id < 2**31 else None
        if raw is None:
            return Token("", None)
        if self._byte_of and self._byte_of.keys() >= set(raw):
            return Token(raw, bytes(self._byte_of[letter] for letter in raw))
        if len(raw) == 6 and raw.startswith("<0x") and raw.endswith(">"):
            return Token(raw, bytes([int(raw[3:5], 16)]))
        return Token(raw, raw.replace("▁", " ").encode())


def spell(tokens: Sequence[bytes]) -> list[list[Span]]:
    """The parts of consecutive tokens.

    A character that several tokens share is text in the last of them, after the bytes that this one adds::

        b"a\\xc3", b"\\xa9!"     [[Span("a"), Span("C3", True)], [Span("A9", True), Span("é!")]]

    Bytes that are no UTF-8 stay bytes.
    """
    owner = [index for index, token in enumerate(tokens) for _ in token]
    spelled: list[list[Span]] = [[] for _ in tokens]

    def add(index: int, text: str, is_bytes: bool) -> None:
        parts = spelled[index]
        if parts and parts[-1].is_bytes == is_bytes:
            text = f"{parts.pop().text}{' ' * is_bytes}{text}"
        parts.append(Span(text, is_bytes))

    at = 0
    for character in b"".join(tokens).decode("utf-8", "surrogateescape"):
        encoded = character.encode("utf-8", "surrogateescape")
        end = at + len(encoded)
        is_stray = "\udc80" <= character <= "\udcff"
        if is_stray or owner[at] != owner[end - 1]:
            for index, byte in zip(owner[at:end], encoded, strict=True):
                add(index, f"{byte:02X}", True)
        if not is_stray:
            add(owner[end - 1], character, False)
        at = end
    return spelled


def text_tokens(ids: list[int], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """{"id", "text", "control"} of each token; bytes of a character that others complete are ⟨C3⟩."""
    tokens = [vocabulary[id] for id in ids]
    spelled = spell([token.text or b"" for token in tokens])
    return [
        {
            "id": id,
            "text": token.raw
            if token.text is None
            else "".join(f"⟨{part.text}⟩" if part.is_bytes else part.text for part in parts),
            "control": token.text is None,
        }
        for id, token, parts in zip(ids, tokens, spelled, strict=True)
    ]
