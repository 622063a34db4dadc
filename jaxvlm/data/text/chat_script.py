"""Writes conversations with the tokenizer's own chat template (Jinja)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2

from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.data.text.templates import OWN_TEMPLATE, TEMPLATES, Draft, place_images
from jaxvlm.errors import UserError

# Code points that no record contains, see turns.py.
_BREAK = "\ufdd1"  # inserted into the spelling of a control token while the chat template is rendered
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

    def __init__(self, system: str | None, tokenizer: Any, marks: dict[str, str], image_mark: str):
        if not tokenizer.chat_template:
            raise UserError(
                f'template "{OWN_TEMPLATE}" needs a tokenizer with a chat template and {tokenizer.name_or_path!r} has '
                f"none; templates: {', '.join(TEMPLATES)} (config.data.template)"
            )
        self._system = system
        self._tokenizer = tokenizer
        self._marks, self._all_marks = marks, tuple(marks.values())
        self._image_mark = image_mark
        # Longest first: otherwise a shorter token could match the beginning of a longer one.
        longest_first = sorted(marks, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        try:
            tokenizer.get_chat_template()
        except ValueError as error:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r} has chat templates {', '.join(sorted(tokenizer.chat_template))} "
                'and none is named "default"; keep only one of them in its files, as chat_template.jinja'
            ) from error
        self._forms: dict[tuple[str, ...], list[str]] = {}  # roles -> the text that each turn adds, for `str.format`

    def probe(self) -> list[str]:
        """Returns the mark of the control token that ends an answer, or no mark if the template ends it with text.

        Raises:
          UserError: the template cannot render a question and an answer, or its output cannot be split into turns.
        """
        turns = (Turn("user", "question"), Turn("assistant", "answer"), Turn("user", "more"))
        probe = Record(id="probe", turns=turns, images=(), origin="a probe of two rounds")
        draft = Draft()
        try:
            self.write(draft, probe)
            question = [{"role": "user", "content": "question"}]
            asked, bare = (self._rendered(question, "", probe, add_generation_prompt=ask) for ask in (True, False))
        except RecordError as error:
            raise UserError(str(error)) from error
        _, start, stop, _, _ = draft.spans[0]
        written = "".join(draft.chunks[0])[start:stop]
        if asked == bare and not written.lstrip().startswith("answer"):
            raise UserError(str(self._error(probe, "it writes a header before the answer that is not in the prompt")))
        return [mark for mark in self._all_marks if written.endswith(mark)]

    def write(self, draft: Draft, record: Record) -> None:
        """Writes a record that has passed `turns.check_turns`.

        Raises:
          RecordError: the chat template refuses the record, or changes the text of earlier turns.
        """
        contents = [self._content(turn) for turn in record.turns]
        texts = self._filled_in(record, contents)
        if texts is None:
            texts = [self._marked(text) for text in self._by_steps(record, [*map(self._escaped, contents)])]
        answers = [text for turn, text in zip(record.turns, contents, strict=True) if turn.role == "assistant"]
        for index, text in enumerate(texts):
            if index % 2 == 0:
                draft.text(text)
                continue
            supervised = text.rstrip()
            if not supervised.endswith(self._all_marks):
                supervised = text  # this template ends a turn with white space
            before, answer, after = supervised.partition(answers[index // 2])
            if answer:
                draft.answer(before, answer, after)
            else:  # this template changes the text of answers
                draft.answer("", supervised, "")
            draft.text(text[len(supervised) :])

    def _content(self, turn: Turn) -> str:
        """The text of a turn as it is passed to the template."""
        if turn.role == "user":
            return place_images(turn.text).replace(IMAGE, self._image_mark)
        # Many templates strip answers too: a newline before the answer could merge with one at its start.
        return turn.text.strip() if turn.role == "assistant" else turn.text

    def _filled_in(self, record: Record, contents: Sequence[str]) -> list[str] | None:
        """The text that each turn adds, from the form of its roles; None if the template writes something else."""
        messages = self._messages(record, [*map(self._escaped, contents)])
        try:
            texts = [form.format(*contents) for form in self._forms_for(record)]
            whole = self._rendered(messages, "", record, add_generation_prompt=messages[-1]["role"] == "user")
        except RecordError:
            return None  # rendering turn by turn then reports the turn that the template refuses
        return texts if "".join(texts) == self._marked(whole) else None

    def _forms_for(self, record: Record) -> list[str]:
        roles = tuple(turn.role for turn in record.turns)
        if roles not in self._forms:
            slots = [f"{_SLOT}{index}{_SLOT_END}" for index in range(len(roles))]
            texts = map(self._marked, self._by_steps(record, slots))
            escaped = (text.replace("{", "{{").replace("}", "}}") for text in texts)
            self._forms[roles] = [text.replace(_SLOT, "{").replace(_SLOT_END, "}") for text in escaped]
        return self._forms[roles]

    def _by_steps(self, record: Record, contents: Sequence[str]) -> list[str]:
        """The text that each turn adds; the header before an answer belongs to the user turn before it."""
        messages, texts, done = self._messages(record, contents), [], ""
        for count in range(1, len(messages) + 1):
            role = messages[count - 1]["role"]
            if role != "system":
                text = self._rendered(messages[:count], done, record, add_generation_prompt=role == "user")
                texts.append(text[len(done) :])
                done = text
        return texts

    def _messages(self, record: Record, contents: Sequence[str]) -> list[dict[str, str]]:
        messages = [{"role": turn.role, "content": text} for turn, text in zip(record.turns, contents, strict=True)]
        if self._system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._escaped(self._system)})
        return messages

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
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
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
