"""Writes conversations with the tokenizer's own chat template (Jinja)."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2

from jaxvlm.data.records import IMAGE, VIDEO, Record, RecordError, Turn, has_videos, split_media
from jaxvlm.data.text.marks import MediaForm
from jaxvlm.data.text.templates import OWN_TEMPLATE, TEMPLATES, Draft, place_images
from jaxvlm.errors import UserError

# Code points that no record contains, see turns.py.
_BREAK = "\ufdd1"  # inserted into the spelling of a control token while the chat template is rendered
_CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
# A piece of a message: a text, or the part of an image or a video as the template gets it.
Piece = str | dict[str, str]
_PARTS: dict[str, dict[str, str]] = {IMAGE: {"type": "image"}, VIDEO: {"type": "video"}}
_SLOT, _SLOT_END = "\ufdd2", "\ufdd3"  # enclose a turn's number: a slot for its text in a rendered template


class ChatScript:
    """Writes records with the tokenizer's own chat template (Jinja).

    To find the supervised text, the template is rendered up to the start of each answer and again up to its end. The
    text that the second render adds is supervised, except white space after the control token that ends the turn.

    This takes one render per turn. So it is done only once for all conversations with the same sequence of roles, with
    slots in place of their contents; the result is the form of these roles. Each record is then rendered once, as a
    whole. If this render equals the form with its slots filled in, the form gives the text of each turn; otherwise the
    record itself is rendered turn by turn.
    """

    def __init__(
        self,
        system: str | None,
        tokenizer: Any,
        marks: dict[str, str],
        media: Mapping[str, MediaForm],
        date: str = "",
    ):
        """Prepares the template; `probe` has to follow.

        Args:
          system: system message of records that have none; None: none is passed to the template.
          tokenizer: with a chat template.
          marks: spelling of each control token -> its mark.
          media: placeholder (`IMAGE`, `VIDEO`) -> how texts contain such a medium.
          date: "2026-11-27", written by templates that ask for the time; "": they write the time of the render.
        """
        if not tokenizer.chat_template:
            raise UserError(
                f'template "{OWN_TEMPLATE}" needs a tokenizer with a chat template and {tokenizer.name_or_path!r} has '
                f"none; templates: {', '.join(TEMPLATES)} (config.data.template)"
            )
        self._system = system
        self._tokenizer = tokenizer
        self._marks, self._all_marks = marks, tuple(marks.values())
        self._media = media
        self._keeps_places = False  # whether a single image or video stays where it stands in the text
        self._control = any_of(marks)
        try:
            chat_template = tokenizer.get_chat_template()
        except ValueError as error:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r} has chat templates {', '.join(sorted(tokenizer.chat_template))} "
                'and none is named "default"; keep only one of them in its files, as chat_template.jinja'
            ) from error
        # Roles and images of a conversation -> the text that each turn adds, for `str.format`; None: it has no form.
        self._forms: dict[tuple, list[str] | None] = {}
        self._as_parts: frozenset[str] = frozenset()  # roles whose content the template takes as a list of parts
        self._chat_template = _with_date(chat_template, date) if date else chat_template
        self._begins = ""  # the text of a probe
        self.reads_clock = bool(date) and "strftime_now(" in self._chat_template

    def probe(self) -> list[str]:
        """Returns the mark of the control token that ends an answer, or no mark if the template ends it with text.

        Raises:
          UserError: the template cannot render a question and an answer, drops one of them or the system message that
            was given, or its output cannot be split into turns.
        """
        self._as_parts = self._find_parts()
        if self._writes_own_media(self._as_parts):
            self._as_parts |= {"user"}
            self._keeps_places = True
        if "user" in self._as_parts:
            self._mark_media()
        turns = (Turn("user", "question"), Turn("assistant", "answer"), Turn("user", "more"))
        probe = Record(id="probe", turns=turns, images=(), origin="a probe of two rounds")
        draft = Draft()
        try:
            self.write(draft, probe)
            question = [self._message("user", ["question"])]
            asked, bare = (self._rendered(question, "", probe, add_generation_prompt=ask) for ask in (True, False))
        except RecordError as error:
            raise UserError(str(error)) from error
        self._begins = bare
        _, start, stop, *_ = draft.spans[0]
        written = "".join(draft.chunks[0])[start:stop]
        if asked == bare and not written.lstrip().startswith("answer"):
            raise UserError(str(self._error(probe, "it writes a header before the answer that is not in the prompt")))
        return [mark for mark in self._all_marks if written.endswith(mark)]

    @property
    def takes_images(self) -> bool:
        """Whether the template writes image parts, as those of processors do."""
        return "user" in self._as_parts

    def begins_with(self, token: str) -> bool:
        """Whether the template writes this token before a conversation; for use after `probe`."""
        return self._begins.startswith(token)

    def _find_parts(self) -> frozenset[str]:
        """The roles whose content the template takes only as a list of parts, as those of many VLMs do.

        Raises:
          UserError: it does not write the content of some role in either form.
        """
        choices: tuple[frozenset[str], ...] = (
            frozenset(),
            frozenset({"system", "user", "assistant"}),
            frozenset({"user"}),
        )
        lost = {as_parts: self._lost(as_parts, ("user", "assistant")) for as_parts in choices}
        found = next((as_parts for as_parts in choices if lost[as_parts] == []), None)
        if found is None:
            if roles := next((roles for roles in lost.values() if roles), None):
                raise self._error_of_roles(roles)
            return choices[0]  # it renders none of these; the probe of two rounds finds out why
        if self._system and self._lost(found, ("system", "user", "assistant")):
            found = found ^ {"system"}
            if lost_system := self._lost(found, ("system", "user", "assistant")):
                raise self._error_of_roles(lost_system)
        return found

    def _lost(self, as_parts: frozenset[str], roles: Sequence[str]) -> list[str] | None:
        """The roles of which a probe's text does not come through; None if the template refuses the probe."""
        texts = {role: f"probe of the {role}" for role in roles}
        self._as_parts = as_parts
        try:
            text = self._render([self._message(role, [texts[role]]) for role in roles])
        except (jinja2.TemplateError, TypeError):  # a string where the template wants parts, or the reverse
            return None
        return [role for role in roles if texts[role] not in text]

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            chat_template=self._chat_template,
        )

    def _error_of_roles(self, roles: Sequence[str]) -> UserError:
        name = self._tokenizer.name_or_path
        what = " and ".join("the system message" if role == "system" else f"messages of the {role}" for role in roles)
        return UserError(
            f"the chat template of tokenizer {name!r} does not write {what}; choose another template "
            "(config.data.template)" + ("" if roles != ["system"] else ", or no system message (config.data.system)")
        )

    def _writes_own_media(self, as_parts: frozenset[str]) -> bool:
        """Whether the template writes an image part with the tokenizer's own token, as Qwen's "<|image_pad|>".

        Such a template may take texts as well, but only for a part it writes the tokens around the image.
        """
        token = self._media[IMAGE].spellings[0]
        if token == IMAGE:
            return False
        self._as_parts = as_parts | {"user"}
        try:
            text = self._render([self._message("user", [_PARTS[IMAGE], "probe of the user"])])
        except (jinja2.TemplateError, TypeError):  # it takes only texts
            text = ""
        self._as_parts = as_parts
        return token in text and "probe of the user" in text

    def _mark_media(self) -> None:
        """Lets what the template writes for an image or a video part, such as "<image>", stand for the medium."""
        for placeholder, form in self._media.items():
            self._marks = self._marks | dict.fromkeys((placeholder, *form.spellings), form.lead + form.mark)
        self._control = any_of(self._marks)

    def write(self, draft: Draft, record: Record) -> None:
        """Writes a record that has passed `turns.check_turns`.

        Raises:
          RecordError: the chat template refuses the record, drops a text of it, or changes the text of earlier turns.
        """
        videos = has_videos(record.images)
        contents = [self._pieces(turn, videos=videos) for turn in record.turns]
        texts = self._filled_in(record, contents)
        if texts is None:
            steps = self._by_steps(record, _changed(contents, self._escaped))
            texts = [self._marked(text) for text in steps]
            self._check_comes_through(draft, record, contents, "".join(texts))
        answers = [turn for turn in record.turns if turn.role == "assistant"]
        for index, text in enumerate(texts):
            if index % 2 == 0:
                draft.text(text)
                continue
            supervised = text.rstrip()
            if not supervised.endswith(self._all_marks):
                supervised = text  # this template ends a turn with white space
            answer = answers[index // 2]
            before, own, after = supervised.partition(answer.text)
            if own:
                draft.answer(before, own, after, answer.weight)
            else:  # this template changes the text of answers
                draft.answer("", supervised, "", answer.weight)
            draft.text(text[len(supervised) :])

    def _pieces(self, turn: Turn, *, videos: bool) -> list[Piece]:
        """The texts of a turn, and the parts of the media between them if the template takes parts."""
        if turn.role != "user":
            return [turn.text]
        text = turn.text if self._keeps_places else place_images(turn.text, videos=videos)
        split = split_media(text, videos=videos)
        if "user" not in self._as_parts:
            forms = [self._media[placeholder] for placeholder in split[1::2]]
            split[1::2] = [form.lead + form.mark for form in forms]
            return ["".join(split)]
        pieces: list[Piece] = [split[0]] if split[0] else []
        for placeholder, piece in zip(split[1::2], split[2::2], strict=True):
            piece = piece.removeprefix("\n")  # it separates a placeholder from the text; the template writes its own
            pieces += [_PARTS[placeholder], piece] if piece else [_PARTS[placeholder]]
        return pieces

    def _filled_in(self, record: Record, contents: Sequence[Sequence[Piece]]) -> list[str] | None:
        """The text that each turn adds, from the form of its roles; None if the template writes something else."""
        messages = self._messages(record, _changed(contents, self._escaped))
        try:
            forms = self._forms_for(record, contents)
            whole = self._rendered(messages, "", record, add_generation_prompt=messages[-1]["role"] == "user")
        except RecordError:
            return None  # rendering turn by turn then reports the turn that the template refuses
        if forms is None:
            return None
        flat = [piece for pieces in contents for piece in pieces if isinstance(piece, str) and piece]
        texts = [form.format(*flat) for form in forms]
        return texts if "".join(texts) == self._marked(whole) else None

    def _forms_for(self, record: Record, contents: Sequence[Sequence[Piece]]) -> list[str] | None:
        kinds = tuple(tuple("" if isinstance(p, str) else p["type"] for p in pieces) for pieces in contents)
        key = (tuple(turn.role for turn in record.turns), kinds)
        if key not in self._forms:
            numbers = itertools.count()
            slots = _changed(contents, lambda _: f"{_SLOT}{next(numbers)}{_SLOT_END}")
            texts = [self._marked(text) for text in self._by_steps(record, slots)]
            escaped = (text.replace("{", "{{").replace("}", "}}") for text in texts)
            whole = "".join(texts)
            complete = all(whole.count(p) == 1 for pieces in slots for p in pieces if isinstance(p, str))
            forms = [text.replace(_SLOT, "{").replace(_SLOT_END, "}") for text in escaped]
            self._forms[key] = forms if complete else None
        return self._forms[key]

    def _check_comes_through(
        self, draft: Draft, record: Record, contents: Sequence[Sequence[Piece]], text: str
    ) -> None:
        """Raises `RecordError` if the template drops text of the record; notes answers that it changes.

        It may change white space. Templates of reasoning models drop the reasoning from answers.
        """
        squeezed = "".join(text.split())
        for number, (turn, pieces) in enumerate(zip(record.turns, contents, strict=True)):
            if all("".join(piece.split()) in squeezed for piece in pieces if isinstance(piece, str)):
                continue
            if turn.role != "assistant":
                raise self._error(record, f"message {number} ({turn.role}) does not come through unchanged")
            draft.notes.add("answer that the chat template changes")

    def _by_steps(self, record: Record, contents: Sequence[Sequence[Piece]]) -> list[str]:
        """The text that each turn adds; the header before an answer belongs to the user turn before it."""
        messages, texts, done = self._messages(record, contents), [], ""
        for count in range(1, len(messages) + 1):
            role = messages[count - 1]["role"]
            if role != "system":
                text = self._rendered(messages[:count], done, record, add_generation_prompt=role == "user")
                texts.append(text[len(done) :])
                done = text
        return texts

    def _messages(self, record: Record, contents: Sequence[Sequence[Piece]]) -> list[dict[str, Any]]:
        messages = [self._message(turn.role, pieces) for turn, pieces in zip(record.turns, contents, strict=True)]
        if self._system is not None and messages[0]["role"] != "system":
            messages.insert(0, self._message("system", [self._escaped(self._system)]))
        return messages

    def _message(self, role: str, pieces: Sequence[Piece]) -> dict[str, Any]:
        if role not in self._as_parts:
            return {"role": role, "content": "".join(piece for piece in pieces if isinstance(piece, str))}
        parts = [{"type": "text", "text": piece} if isinstance(piece, str) else piece for piece in pieces]
        return {"role": role, "content": parts}

    def _escaped(self, text: str) -> str:
        """Inserts `_BREAK` after each character of every control token that `text` spells out.

        The break after the last character prevents a match that starts there and continues in the template's text.
        """
        return self._control.sub(lambda found: _BREAK.join(found[0]) + _BREAK, text)

    def _marked(self, text: str) -> str:
        """Replaces the template's own control tokens by their marks, and undoes `_escaped`."""
        return self._control.sub(lambda found: self._marks[found[0]], text).replace(_BREAK, "")

    def _rendered(self, messages: list[dict], done: str, record: Record, *, add_generation_prompt: bool) -> str:
        try:
            text = self._render(messages, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError) as error:
            raise self._error(record, f"message {len(messages) - 1}: {error}") from error
        if not text.startswith(done):
            raise self._error(
                record, f"message {len(messages) - 1} ({messages[-1]['role']}) changes the text before itself"
            )
        return text

    def _error(self, record: Record, finding: str) -> RecordError:
        name = self._tokenizer.name_or_path
        return RecordError(
            f"{record.origin}: the chat template of tokenizer {name!r} must add each message to the text before it; "
            f"{finding}; use another template (config.data.template)",
            origin=record.origin,
            reason="chat_template",
        )


def _changed(contents: Sequence[Sequence[Piece]], change: Callable[[str], str]) -> list[list[Piece]]:
    """The pieces of messages with each text that is not empty changed."""
    return [[change(p) if isinstance(p, str) and p else p for p in pieces] for pieces in contents]


def any_of(spellings: Iterable[str]) -> re.Pattern:
    """Matches any of the spellings; longest first, so that no shorter one matches the beginning of a longer one."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _with_date(chat_template: str, date: str) -> str:
    """The template with a date in place of the clock. (transformers passes no functions to a template.)"""
    day = datetime.date.fromisoformat(date)
    return _CLOCK.sub(lambda call: json.dumps(day.strftime(call["format"])), chat_template)
