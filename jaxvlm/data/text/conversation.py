"""Turns conversations into token ids and loss weights.

While the text is written, the supervised characters are recorded. The offsets of the tokenizer then map characters to
tokens. The finished text is never searched for answers, and nothing is tokenized twice to count tokens. So the content
of an answer cannot shift its labels or remove them. One round of `vicuna_v1`::

    <s> ... USER: <im> \\n What is it? ASSISTANT: A cat. </s>
    0   0   0     0    0  0            0          1      1      loss weights

Rules:
  * Supervised text is each answer, the space before it and the token that ends the turn. A token with at least one
    character of supervised text is supervised.
  * In a user turn with one image, the image moves to the front: `<image>`, a newline, and the stripped text (LLaVA).
    In a turn with several images they keep their places, because the text around them refers to them (LLaVA-NeXT).
    Videos and `<video>` are treated alike, in a record that has a video.
  * With a chat template that writes images with a token of its own, such as Qwen's, all media keep their places.
  * `<image>` in any other role, what `records.spelled` marks in a user turn, and any spelling of a control token
    (`</s>`) in any text, is plain text.
  * The ids of a prompt are a prefix of the ids that are trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tokenizers import Encoding

from jaxvlm.data.records import IMAGE, VIDEO, Record, RecordError, Turn, has_videos, placeholder_of
from jaxvlm.data.sample import Sample
from jaxvlm.data.text.chat_script import ChatScript, any_of
from jaxvlm.data.text.marks import MediaToken, adds_bos, control_spellings, marked_backend, media_forms
from jaxvlm.data.text.templates import ANSWERS, OWN_TEMPLATE, Draft, Template, TemplateScript, find_template
from jaxvlm.data.text.tokenizer import media_tokens
from jaxvlm.data.text.turns import check_turns
from jaxvlm.errors import UserError
from jaxvlm.media import VideoText


class Renderer:
    """Renders records for one tokenizer and one template.

    It works on a copy of the tokenizer's backend. In the copy every control token is plain text, and marks that no
    record can contain represent the control tokens that the template writes. The tokenizer passed in is not changed.

    Attributes:
      stop_ids: ids that end an answer.
      warnings: what is wrong with all records of this template, such as that no end of an answer is supervised.
      takes_documents: whether records are texts without questions.

    Source: with `TEMPLATES`, each text between images is tokenized separately, as LLaVA does (hence "▁" before the
    newline after an image). With the tokenizer's own template all text is tokenized in one pass, as transformers does.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | Template,
        *,
        image_token_id: int,
        system: str | None = None,
        answers: str = "all",
        control_tokens: tuple[str, ...] = (),
        stop_tokens: tuple[str, ...] = (),
        date: str = "",
        video_text: VideoText | None = None,
    ):
        """Makes the copy of the tokenizer, which takes 0.5 s for a vocabulary of 32,000 and 3 s for 150,000.

        Args:
          tokenizer: a fast tokenizer of transformers.
          template: a name in `TEMPLATES`, "tokenizer" for the tokenizer's own chat template, or a `Template`.
          image_token_id: the id of an image placeholder; that of a video is found by `media_tokens`.
          system: system message of records that have none. None: the template's own; "": none at all (the
            tokenizer's own template then gets an empty message).
          answers: which answers of a conversation are supervised: "all", or only the "last".
          control_tokens: spellings of control tokens that are those tokens in the text of records, too.
          stop_tokens: spellings of tokens that end an answer, too (a folder's generation config may name some).
          date: "2026-11-27", for chat templates that write it; "": they write that of the render.
          video_text: `MediaLayout.video_text` of the model.

        Raises:
          UserError: there is no such template or choice of answers; the template has no place for `system`; the
            tokenizer is not a fast one, or lacks a control token of the template or of `control_tokens`, or a chat
            template; or the chat template drops texts, or cannot be split into prompts and answers (Qwen3's rewrites
            earlier answers when a question follows).
        """
        given: dict[str, Any] = {"system": system, "answers": answers, "control_tokens": control_tokens}
        given |= {"stop_tokens": stop_tokens, "date": date, "video_text": video_text}
        self._again = functools.partial(Renderer, tokenizer, template, image_token_id=image_token_id, **given)
        if answers not in ANSWERS:
            raise UserError(f"data.answers = {answers!r}, expected {' or '.join(ANSWERS)}")
        self._last_only = answers == "last"
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"a fast tokenizer is needed for its character offsets, found {type(tokenizer).__name__}; "
                "save the tokenizer as tokenizer.json"
            )
        if isinstance(template, str) and template != OWN_TEMPLATE:
            template = find_template(template)
        if isinstance(template, Template) and system and not template.takes_system:
            raise UserError(
                f"data.system = {system!r}, and the template (config.data.template) writes no system message; leave it "
                "out, or choose a template for conversations"
            )
        self._tokenizer = tokenizer
        self._captions = isinstance(template, Template) and template.captions
        self.takes_documents = isinstance(template, Template) and template.documents

        written = tokenizer.backend_tokenizer.to_str()
        media = media_tokens(tokenizer, image_token_id)
        inputs = [written, tokenizer.chat_template, repr(template), media, system, answers, control_tokens]
        if "strftime_now" in str(tokenizer.chat_template):
            inputs.append(date)
        if video_text is not None:
            inputs.append(video_text)
        self._fingerprint = hashlib.blake2b(json.dumps(inputs, default=str).encode(), digest_size=16).hexdigest()
        marks = self._mark_control_tokens(json.loads(written), template, media, control_tokens)
        self._media = media_forms(media, self._media_marks, video_text)
        stop_ids = self._find_stop_ids(template, system, marks, date) + _stop_ids(tokenizer, stop_tokens)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stop_ids))
        self.warnings = self._find_warnings()

    def _mark_control_tokens(
        self,
        state: dict[str, Any],
        template: str | Template,
        media: Mapping[str, MediaToken],
        control_tokens: tuple[str, ...],
    ) -> dict[str, str]:
        """Makes the copy of the tokenizer from `state`, its backend's JSON. Returns spelling -> mark."""
        tokenizer = self._tokenizer
        spellings = control_spellings(tokenizer, template, state) | _allowed(tokenizer, control_tokens)
        control_ids = {*spellings.values(), tokenizer.eos_token_id, tokenizer.bos_token_id}
        control_ids |= {token.id for token in media.values()}
        control_ids -= {None, tokenizer.unk_token_id}
        # The image's id may be beyond the vocabulary; in the copy it is then the id of another token.
        control_ids = {token for token in control_ids if tokenizer.backend_tokenizer.id_to_token(token) is not None}
        self._backend, self._media_marks, marks = marked_backend(state, control_ids, media, spellings)
        size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self._is_control = np.zeros(size, bool)
        self._is_control[list(control_ids)] = True
        self._real_id = np.arange(size, dtype=np.int32)
        self._media_ids = {placeholder: self._mark_id(mark) for placeholder, mark in self._media_marks.items()}
        for placeholder, token in media.items():
            self._real_id[self._media_ids[placeholder]] = token.id
        for spelling, mark in marks.items():
            self._real_id[self._mark_id(mark)] = spellings[spelling]

        self._allowed = {spelling: marks[spelling] for spelling in sorted(control_tokens, key=len, reverse=True)}
        special = {token["content"] for token in state["added_tokens"] if token["special"]}
        self._spelled_out = any_of(special - {IMAGE, VIDEO, *control_tokens})
        return marks

    def _find_stop_ids(
        self, template: str | Template, system: str | None, marks: dict[str, str], date: str
    ) -> list[int]:
        """Makes `self._script`. Returns the ids that end an answer."""
        self._start: list[int] = []
        self._stop_text = ""
        stop_marks = self._make_script(template, system, marks, date)
        stop_ids = [int(self._real_id[self._mark_id(mark)]) for mark in stop_marks]
        if self._stop_text:
            stop_ids.append(self._backend.encode("a" + self._stop_text, add_special_tokens=False).ids[-1])
        if self._tokenizer.eos_token_id is not None:
            stop_ids.append(self._tokenizer.eos_token_id)
        return stop_ids

    def _find_warnings(self) -> tuple[str, ...]:
        warnings = self._warnings_of_ends()
        if isinstance(self._script, ChatScript) and self._script.reads_clock:
            warnings += (
                "the chat template writes the time in a form of its own, so texts differ from day to day; let it call "
                'strftime_now with a text, such as strftime_now("%d %b %Y")',
            )
        return warnings

    def _warnings_of_ends(self) -> tuple[str, ...]:
        probe = Record("probe", (Turn("user", "question"), Turn("assistant", "answer")), (), "a probe of one round")
        try:
            sample = self._encode(probe)
        except RecordError:  # such as a template that writes an image into each conversation
            return ()
        if set(sample.tokens[sample.loss_weights > 0].tolist()) & set(self.stop_ids):
            return ()
        ends = ", ".join(repr(self._tokenizer.decode([stop_id])) for stop_id in self.stop_ids) or "none"
        return (
            f"no token that ends an answer ({ends}) is supervised, so the model does not learn to stop; write the end "
            "token after each answer in the chat template, or choose another template (config.data.template)",
        )

    def notes(self, record: Record) -> set[str]:
        """What rendering does with a record's text that its author may not expect, for `inspect_data check`."""
        found = {match for turn in record.turns for match in self._spelled_out.findall(turn.text)}
        return {f"control token {spelling} as plain text (data.control_tokens may allow it)" for spelling in found}

    def _make_script(self, template: str | Template, system: str | None, marks: dict[str, str], date: str) -> list[str]:
        """Makes `self._script`, which writes conversations. Returns the marks that end an answer."""
        tokenizer = self._tokenizer
        self._script: TemplateScript | ChatScript
        if not isinstance(template, Template):
            self._script = ChatScript(system, tokenizer, marks, self._media, date)
            stop_marks = self._script.probe()
            # A tokenizer adds no BOS to a chat template's text. A processor does, if the text begins without one.
            if self._script.takes_images and adds_bos(tokenizer) and not self._script.begins_with(tokenizer.bos_token):
                self._start = [self._mark_id(marks[tokenizer.bos_token])]
            return stop_marks
        spelled = {"{bos}": tokenizer.bos_token, "{eos}": tokenizer.eos_token} | {c: c for c in template.control}
        tokens = {name: marks.get(spelling, "") for name, spelling in spelled.items()}
        self._script = TemplateScript(template, system, tokens)
        if adds_bos(tokenizer):
            self._start = [self._mark_id(marks[tokenizer.bos_token])]
        stop_marks = [mark for mark in marks.values() if mark in self._script.after_answer]
        # `plain` ends an answer with a newline: its id is a stop id, and `decode` cuts at one inside a token.
        if not stop_marks:
            self._stop_text = template.after_answer
        return stop_marks

    @property
    def takes_images(self) -> bool:
        """Whether the tokenizer's own chat template is used and writes images itself."""
        return isinstance(self._script, ChatScript) and self._script.takes_images

    @property
    def needs_bare_ids(self) -> bool:
        """Whether the tokenizer adds a BOS token to a text of its own chat template that is not in our ids."""
        return isinstance(self._script, ChatScript) and adds_bos(self._tokenizer) and not self._start

    def __reduce__(self):
        # Rebuilt, not copied: the backend loses `encode_special_tokens` when it is pickled.
        return self._again, ()

    def fingerprint(self) -> str:
        """A hash of everything that `render` depends on: tokenizer, template, system message, choice of answers."""
        return self._fingerprint

    def _mark_id(self, mark: str) -> int:
        found = self._backend.token_to_id(mark)
        assert found is not None  # `marked_backend` added it
        return found

    def render(self, record: Record) -> Sample:
        """Returns ids and loss weights of a conversation that ends with an answer.

        Raises:
          RecordError: `check_turns` refuses the record, or the tokenizer's chat template does.
        """
        check_turns(record, captions=self._captions, documents=self.takes_documents)
        return self._encode(record)

    def render_prompt(self, record: Record) -> Sample:
        """Returns ids and loss weights of a conversation that ends with a user turn, up to where the answer begins.

        Both are the first ones that `render` returns for the same record with an answer.

        Raises:
          RecordError: `check_turns` refuses the record, or the tokenizer's chat template does.
        """
        check_turns(record, last="user", captions=self._captions, documents=self.takes_documents)
        return self._encode(record)

    def render_answer(self, record: Record) -> Sample:
        """As `render`, with weight 1 at the text of the last answer and 0 elsewhere, at its end token too.

        The tokens before the first of them are those of `render_prompt` for the record without that answer.

        Raises:
          RecordError: as `render`.
        """
        check_turns(record, captions=self._captions, documents=self.takes_documents)
        return self._encode(record, answer_only=True)

    def starts(self, text: str) -> np.ndarray:
        """int64[L], the character at which each token of a text begins; tokens of one character begin at the same."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return np.array([start for start, _ in encoding.offsets], np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes generated ids into an answer: up to the first stop id, without control tokens, stripped."""
        answer: list[int] = []
        for token in ids:
            if int(token) in self.stop_ids:
                break
            answer.append(int(token))
        text = self._tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self._stop_text:
            text = text.strip().partition(self._stop_text)[0]
        return text.strip()

    def _encode(self, record: Record, *, answer_only: bool = False) -> Sample:
        draft = Draft()
        self._script.write(draft, self._with_allowed(record))
        chosen = draft.spans[-1 if self._last_only or answer_only else 0 :]
        if answer_only:  # up to the end of its own text
            chosen = [(chunk, start, own_stop, own, own_stop, 1.0) for chunk, start, _, own, own_stop, _ in chosen]
        ids = list(self._start)
        supervised: list[tuple[int, int, float]] = []  # token ranges, and their weight
        spans = iter([*chosen, (len(draft.chunks), 0, 0, 0, 0, 0.0)])
        chunk, start, stop, own_start, own_stop, weight = next(spans)
        for index, parts in enumerate(draft.chunks):
            if index:
                ids.append(self._media_ids[draft.media[index - 1]])
            lead = self._media[draft.media[index]].lead if index < len(draft.media) else ""
            encoding = self._backend.encode("".join(parts) + lead, add_special_tokens=False)
            while chunk == index:
                own_begin, own_end = _token_range(encoding, own_start, own_stop)
                if own_begin == own_end:  # a byte-level vocabulary without <unk> drops the bytes it lacks
                    raise RecordError(
                        f"{record.origin}: this tokenizer encodes an answer to no tokens; drop the record",
                        origin=record.origin,
                        reason="nothing_supervised",
                    )
                begin, end = _token_range(encoding, start, stop)
                supervised.append((len(ids) + begin, len(ids) + end, weight))
                chunk, start, stop, own_start, own_stop, weight = next(spans)
            ids += encoding.ids
        raw = np.array(ids, np.int32)
        loss_weights = np.zeros(len(raw), np.float32)
        for begin, end, weight in supervised:
            loss_weights[begin:end] = weight
        if self._is_control[raw].any():
            raw, loss_weights = self._spell_out(raw, loss_weights)
        is_image = np.isin(raw, list(self._media_ids.values()))
        self._check_media(record, raw[is_image].tolist())
        notes = frozenset(draft.notes)
        return Sample(tokens=self._real_id[raw], loss_weights=loss_weights, is_image=is_image, notes=notes)

    def _check_media(self, record: Record, found: list[int]) -> None:
        """Raises `RecordError` unless the ids of marks are those of the record's images and videos, in their order."""
        if found == [self._media_ids[placeholder_of(medium)] for medium in record.images]:
            return
        if len(found) != len(record.images):
            what = "images and videos" if has_videos(record.images) else "images"
            finding = f"wrote {len(found)} placeholders for {len(record.images)} {what}"
        else:
            finding = "writes its images and videos in another order than the record"
        raise RecordError(
            f"{record.origin}: the chat template {finding}; use another template (config.data.template)",
            origin=record.origin,
            reason="chat_template",
        )

    def _with_allowed(self, record: Record) -> Record:
        """The record with the marks of allowed control tokens in place of their spellings."""
        turns = record.turns
        for spelling, mark in self._allowed.items():
            turns = tuple(dataclasses.replace(turn, text=turn.text.replace(spelling, mark)) for turn in turns)
        return dataclasses.replace(record, turns=turns) if turns is not record.turns else record

    def _spell_out(self, raw: np.ndarray, loss_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Replaces control ids by the ids of their characters.

        At this point the control tokens of the template are still marks. So these ids come from text: a BPE model can
        merge "<", "/s" and ">" to the piece "</s>".
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


def _allowed(tokenizer: Any, control_tokens: tuple[str, ...]) -> dict[str, int]:
    """Spelling -> id of the control tokens that records may contain."""
    ids = {spelling: tokenizer.backend_tokenizer.token_to_id(spelling) for spelling in control_tokens}
    wrong = [spelling for spelling, token in ids.items() if token is None or not spelling or spelling in (IMAGE, VIDEO)]
    if wrong:
        raise UserError(
            f"data.control_tokens has {', '.join(map(repr, wrong))}: give tokens that {tokenizer.name_or_path!r} has, "
            f"except {IMAGE}"
        )
    return ids


def _stop_ids(tokenizer: Any, stop_tokens: tuple[str, ...]) -> list[int]:
    vocab = tokenizer.get_vocab()
    if unknown := [token for token in stop_tokens if token not in vocab]:
        raise UserError(
            f"data.stop_tokens has {', '.join(map(repr, unknown))}: give tokens that {tokenizer.name_or_path!r} has"
        )
    return [vocab[token] for token in stop_tokens]


def _token_range(encoding: Encoding, start: int, stop: int) -> tuple[int, int]:
    """The tokens that contain a character of [start, stop), as (first, last + 1).

    It looks up only a few tokens, whatever the length; Encoding.offsets would make a tuple for every token.
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
    assert characters is not None  # None only for special tokens that encoding adds, and it adds none
    return characters


def _token_at(encoding: Encoding, character: int) -> int:
    """The first token of a character, or of the nearest earlier one that normalisation kept; 0 if there is none."""
    while character >= 0:
        token = encoding.char_to_token(character)
        if token is not None:
            return token
        character -= 1
    return 0
