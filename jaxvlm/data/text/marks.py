"""Copies a tokenizer so that control tokens are plain text, and marks that no record contains replace them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from jaxvlm.data.records import VIDEO
from jaxvlm.data.text.templates import Template
from jaxvlm.errors import UserError
from jaxvlm.media import VideoText

_MARK = "\ufdd0"  # followed by a private-use character, it is the mark of one control token
_PRIVATE_USE = 0xF0000  # the first code point of Unicode's largest private-use plane


class MediaToken(NamedTuple):
    """The token of the placeholders of images, or of videos."""

    id: int
    spelling: str  # as a chat template writes it; the placeholder itself if the tokenizer has no token of that kind


class MediaForm(NamedTuple):
    """How texts contain an image or a video."""

    mark: str
    spellings: tuple[str, ...]  # in the text of a chat template, the tokenizer's own token first
    lead: str  # text in front of the mark


def media_forms(
    media: Mapping[str, MediaToken], marks: Mapping[str, str], video_text: VideoText | None
) -> dict[str, MediaForm]:
    """The form of each placeholder, from its token and its mark; `video_text` is `MediaLayout.video_text`."""
    forms = {name: MediaForm(marks[name], (token.spelling,), "") for name, token in media.items()}
    if video_text is not None:
        (own,) = forms[VIDEO].spellings
        spellings = (own, f"{video_text.before}{own}{video_text.after}")
        forms[VIDEO] = MediaForm(marks[VIDEO], spellings, video_text.lead)
    return forms


def control_spellings(tokenizer: Any, template: str | Template, state: dict) -> dict[str, int]:
    """Maps the spelling of every control token that the template can write to its id.

    Raises:
      UserError: the tokenizer lacks one of them.
    """
    if not isinstance(template, Template):  # a chat template can write any of them
        return {
            token["content"]: token["id"]
            for token in state["added_tokens"]
            if token["special"] and token["id"] != tokenizer.unk_token_id
        }
    text = "".join(value for value in vars(template).values() if isinstance(value, str))
    ids = {spelling: tokenizer.backend_tokenizer.token_to_id(spelling) for spelling in template.control}
    missing = [spelling for spelling, token in ids.items() if token is None]
    for name in ("bos", "eos"):
        spelling, token = getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            ids[spelling] = token
        elif f"{{{name}}}" in text:
            missing.append(f"a token for {name.upper()}")
    if missing:
        raise UserError(
            f"the template writes tokens that {tokenizer.name_or_path!r} lacks: {', '.join(missing)}; "
            "choose another template (config.data.template) or add them to the tokenizer"
        )
    return ids


def marked_backend(
    state: dict, control_ids: set[int], media: Mapping[str, MediaToken], spellings: dict[str, int]
) -> tuple[Tokenizer, dict[str, str], dict[str, str]]:
    """Makes a tokenizer that treats control tokens as plain text, with a mark to use in place of each.

    A mark is an added token with the white space rules of the token that it replaces. So the text after it is
    tokenized as after that token (only old Llama tokenizers put a space before "USER" after "</s>").

    Args:
      media: placeholder (`IMAGE`, `VIDEO`) -> its token.

    Returns:
      The tokenizer, its mark for each placeholder, and its mark for each spelling.
    """
    flags = {token["id"]: token for token in state["added_tokens"]}
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in control_ids
    backend = Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}))
    backend.encode_special_tokens = True  # tells the package tokenizers to split special tokens as text

    ids = [*(token.id for token in media.values()), *spellings.values()]
    marks = [_MARK + chr(_PRIVATE_USE + index) for index in range(len(ids))]
    backend.add_tokens(
        [
            AddedToken(
                mark,
                lstrip=flags.get(token, {}).get("lstrip", False),
                rstrip=flags.get(token, {}).get("rstrip", False),
                normalized=False,
                special=False,
            )
            for mark, token in zip(marks, ids, strict=True)
        ]
    )
    own = dict(zip(spellings, marks[len(media) :], strict=True))
    media_marks = dict(zip(media, marks, strict=False))
    for placeholder, token in media.items():
        # The chat template writes this token; an end token with the image's id keeps its own mark.
        if spellings.get(token.spelling) == token.id:
            own[token.spelling] = media_marks[placeholder]
    return backend, media_marks, own


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers puts its BOS token before a text."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
