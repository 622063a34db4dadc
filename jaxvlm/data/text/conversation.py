"""Conversations to token ids and loss weights.

The loss mask is known while the text is written, character by character, and carried to tokens by the tokenizer's own
offsets. Nothing is searched in the finished text and nothing is tokenized a second time to be counted, so no answer,
whatever its text, can shift or lose its labels. One round of `vicuna_v1`::

    <s> ... USER: <im> \\n What is it? ASSISTANT: A cat. </s>
    0   0   0     0    0  0            0          1      1      loss weights

Rules:
  * Supervised are the tokens that the model has to generate: each answer, the space before it and the token that ends
    the turn. A token with any character of these is supervised.
  * In a user turn with one image, the image moves to the front: `<image>`, a newline, the rest stripped (LLaVA).
    In a turn with several they stay where they are, because the text around them refers to each (LLaVA-NeXT).
  * `<image>` in any other role, and any spelling of a control token (`</s>`) in any text, is plain text.
  * The prompt of a conversation is a prefix, id by id, of its training sequence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Encoding

from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.text.chat_script import ChatScript
from jaxvlm.data.text.marks import control_spellings, marked_backend
from jaxvlm.data.text.templates import ANSWERS, OWN_TEMPLATE, Draft, Template, TemplateScript, find_template
from jaxvlm.data.text.turns import check_turns
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sample:
    """One rendered conversation of `L` tokens, before its images are expanded to their features."""

    tokens: (
        np.ndarray
    )  # int32[L]; BOS included if the tokenizer puts one; each image is one id, the renderer's `image_token_id`
    loss_weights: np.ndarray  # float32[L]; 1 where the token itself is supervised: the position before predicts it
    is_image: np.ndarray  # bool[L]; image placeholders; the id alone does not identify them (it may be <unk>)


class Renderer:
    """Renders records for one tokenizer and one template.

    It works on a copy of the tokenizer's backend in which every control token is plain text, and in which marks that
    no record can contain represent those which the template writes. The tokenizer that was passed in is not changed.

    Attributes:
      stop_ids: ids that end an answer.

    Source: with `TEMPLATES` each text between images is tokenized alone, as LLaVA does (hence
    "▁" before the newline after an image); the tokenizer's own template in one pass, as transformers does.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | Template,
        *,
        image_token_id: int,
        system: str | None = None,
        answers: str = "all",
    ):
        """Prepares the copy of the tokenizer, which takes 0.5 s for a vocabulary of 32,000 and 3 s for 150,000.

        Args:
          tokenizer: a fast tokenizer of transformers.
          template: a name in `TEMPLATES`, "tokenizer" for the tokenizer's own chat template, or a template.
          image_token_id: the id that represents an image.
          system: system message of records without one. None: the template's own; "": none at all (for the
            tokenizer's own template an empty message).
          answers: which answers of a conversation are supervised: "all", or the "last" only.

        Raises:
          UserError: no such template or choice of answers, the tokenizer is a slow one, lacks a control token of the
            template or its own chat template, or that template cannot be split into prompts and answers (Qwen3's
            rewrites earlier answers when a question follows).
        """
        self._arguments = (tokenizer, template, image_token_id, system, answers)
        if answers not in ANSWERS:
            raise UserError(f"data.answers = {answers!r}, expected {' or '.join(ANSWERS)}")
        self._last_only = answers == "last"
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"a fast tokenizer is needed for its offsets, found {type(tokenizer).__name__}; "
                "save the tokenizer as tokenizer.json"
            )
        if isinstance(template, str) and template != OWN_TEMPLATE:
            template = find_template(template)
        self._tokenizer = tokenizer
        self._captions = isinstance(template, Template) and template.captions

        written = tokenizer.backend_tokenizer.to_str()
        settings = [written, tokenizer.chat_template, repr(template), image_token_id, system, answers]
        self._fingerprint = hashlib.blake2b(json.dumps(settings, default=str).encode(), digest_size=16).hexdigest()
        state = json.loads(written)
        spellings = control_spellings(tokenizer, template, state)
        control_ids = {*spellings.values(), image_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
        control_ids -= {None, tokenizer.unk_token_id}
        # The image's id may be beyond the vocabulary; in the copy it then belongs to another token.
        control_ids = {token for token in control_ids if tokenizer.backend_tokenizer.id_to_token(token) is not None}
        self._backend, self._image_mark, marks = marked_backend(state, control_ids, image_token_id, spellings)
        size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self._is_control = np.zeros(size, bool)
        self._is_control[list(control_ids)] = True
        self._real_id = np.arange(size, dtype=np.int32)
        self._image_mark_id = self._mark_id(self._image_mark)
        self._real_id[self._image_mark_id] = image_token_id
        for spelling, mark in marks.items():
            self._real_id[self._mark_id(mark)] = spellings[spelling]

        self._start: list[int] = []
        self._stop_text = ""
        stop_marks = self._make_script(template, system, marks)
        stop_ids = [int(self._real_id[self._mark_id(mark)]) for mark in stop_marks]
        if self._stop_text:
            stop_ids.append(self._backend.encode("a" + self._stop_text, add_special_tokens=False).ids[-1])
        if tokenizer.eos_token_id is not None:
            stop_ids.append(tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stop_ids))

    def _make_script(self, template: str | Template, system: str | None, marks: dict[str, str]) -> list[str]:
        """Makes the script that writes conversations; returns the marks that end an answer."""
        tokenizer = self._tokenizer
        self._script: TemplateScript | ChatScript
        if not isinstance(template, Template):
            # A chat template writes BOS itself if it wants one, so none is added (as in transformers).
            self._script = ChatScript(system, tokenizer, marks, self._image_mark)
            return self._script.probe()
        spelled = {"{bos}": tokenizer.bos_token, "{eos}": tokenizer.eos_token} | {c: c for c in template.control}
        tokens = {name: marks.get(spelling, "") for name, spelling in spelled.items()}
        self._script = TemplateScript(template, system, tokens)
        if tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
            self._start = [self._mark_id(marks[tokenizer.bos_token])]
        stop_marks = [mark for mark in marks.values() if mark in self._script.after_answer]
        if not stop_marks:  # the newline of `plain`: as an id where it has one of its own, else in `decode`
            self._stop_text = template.after_answer
        return stop_marks

    def __reduce__(self):
        # Rebuilt, not copied: the backend loses `encode_special_tokens` when it is pickled.
        return _rebuild_renderer, self._arguments

    def fingerprint(self) -> str:
        """A hash of everything on which `render` depends: tokenizer, template, system message, choice of answers."""
        return self._fingerprint

    def _mark_id(self, mark: str) -> int:
        found = self._backend.token_to_id(mark)
        assert found is not None  # `marked_backend` has added it
        return found

    def render(self, record: Record) -> Sample:
        """Ids and loss weights of a conversation that ends with an answer.

        Raises:
          RecordError: `check_turns` refuses the record, or the tokenizer's chat template does.
        """
        check_turns(record, captions=self._captions)
        return self._encode(record)

    def render_prompt(self, record: Record) -> Sample:
        """Ids of a conversation that ends with a user turn, up to where the answer begins.

        They are the first ids of `render` for the same record with an answer (weights of earlier answers included).

        Raises:
          RecordError: `check_turns` refuses the record, or the tokenizer's chat template does.
        """
        check_turns(record, last="user", captions=self._captions)
        return self._encode(record)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of an answer from generated ids: up to the first stop id, without control tokens, stripped."""
        answer: list[int] = []
        for token in ids:
            if int(token) in self.stop_ids:
                break
            answer.append(int(token))
        text = self._tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self._stop_text:
            text = text.strip().partition(self._stop_text)[0]
        return text.strip()

    def _encode(self, record: Record) -> Sample:
        draft = Draft()
        self._script.write(draft, record)
        ids = list(self._start)
        supervised: list[tuple[int, int]] = []  # token ranges
        spans = iter(draft.spans[-1 if self._last_only else 0 :] + [(len(draft.chunks), 0, 0, 0, 0)])
        chunk, start, stop, own_start, own_stop = next(spans)
        for index, parts in enumerate(draft.chunks):
            if index:
                ids.append(self._image_mark_id)
            encoding = self._backend.encode("".join(parts), add_special_tokens=False)
            while chunk == index:
                own_begin, own_end = _token_range(encoding, own_start, own_stop)
                if own_begin == own_end:  # a byte-level vocabulary without some bytes drops them, without <unk>
                    raise RecordError(
                        f"{record.origin}: an answer has no token of its own in this tokenizer; drop the record",
                        origin=record.origin,
                        reason="nothing_supervised",
                    )
                begin, end = _token_range(encoding, start, stop)
                supervised.append((len(ids) + begin, len(ids) + end))
                chunk, start, stop, own_start, own_stop = next(spans)
            ids += encoding.ids
        raw = np.array(ids, np.int32)
        loss_weights = np.zeros(len(raw), np.float32)
        for begin, end in supervised:
            loss_weights[begin:end] = 1
        if self._is_control[raw].any():
            raw, loss_weights = self._spell_out(raw, loss_weights)
        is_image = raw == self._image_mark_id
        if np.count_nonzero(is_image) != len(record.images):
            raise RecordError(
                f"{record.origin}: the chat template wrote {np.count_nonzero(is_image)} placeholders for "
                f"{len(record.images)} images; use another template (config.data.template)",
                origin=record.origin,
                reason="chat_template",
            )
        return Sample(tokens=self._real_id[raw], loss_weights=loss_weights, is_image=is_image)

    def _spell_out(self, raw: np.ndarray, loss_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Replaces control ids by those of their characters.

        The template's own are still marks, so these come from text: a model may merge "<", "/s" and
        ">" to the piece "</s>".
        """
        spelled = []
        for token in raw.tolist():
            if self._is_control[token]:
                characters = self._backend.id_to_token(token) or ""
                spelled.append([piece.id for c in characters for piece in self._backend.model.tokenize(c)])
            else:
                spelled.append([token])
        return (
            np.array([token for tokens in spelled for token in tokens], np.int32),
            np.repeat(loss_weights, [len(tokens) for tokens in spelled]),
        )


def _rebuild_renderer(
    tokenizer: Any, template: str | Template, image_token_id: int, system: str | None, answers: str
) -> Renderer:
    return Renderer(tokenizer, template, image_token_id=image_token_id, system=system, answers=answers)


def _token_range(encoding: Encoding, start: int, stop: int) -> tuple[int, int]:
    """Tokens with a character of [start, stop), as (first, last + 1).

    Few look-ups whatever the length: Encoding.offsets would make a tuple for every token.
    """
    total = len(encoding)
    begin = _token_at(encoding, start - 1)
    while begin < total and _characters(encoding, begin)[1] <= start:  # several tokens can share one character
        begin += 1
    end = max(begin, _token_at(encoding, stop - 1))
    while end < total and _characters(encoding, end)[0] < stop:
        end += 1
    return begin, end


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    """The characters of a token, as (first, last + 1)."""
    characters = encoding.token_to_chars(token)
    assert characters is not None  # of special tokens put round a text only, and there are none
    return characters


def _token_at(encoding: Encoding, character: int) -> int:
    """The first token of a character, or of the nearest one before it that was not normalised away; else 0."""
    while character >= 0:
        token = encoding.char_to_token(character)
        if token is not None:
            return token
        character -= 1
    return 0
