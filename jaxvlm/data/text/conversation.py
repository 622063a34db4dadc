"""Conversations to token ids and loss weights.

What is supervised is known while the text is written, character by character, and carried to tokens by the
tokenizer's own offsets. Nothing is looked up in the finished text and nothing is tokenized a second time to be
counted, so no answer, whatever it holds, can shift or lose its labels. One round of `vicuna_v1`::

    <s> ... USER: <im> \\n What is it? ASSISTANT: A cat. </s>
    0   0   0     0    0  0            0          1      1      loss weights

Rules:
  * Supervised is what the model has to write: each answer, the space before it and the token that ends the turn.
    A token that holds any character of that is supervised.
  * A user turn with one image has the image moved to its front, `<image>` and a newline, the rest stripped (LLaVA).
    In a turn with several they stay where they are, because the text round them tells them apart (LLaVA-NeXT).
  * `<image>` in any other role, and any spelling of a control token (`</s>`) in any text, is plain text.
  * The prompt of a conversation is a prefix, id by id, of what is trained on.

Source: LLaVA-1.5 (arXiv:2310.03744), its llava/train/train.py and llava/mm_utils.py for the token sequence of
`plain`, `vicuna_v1` and `llama2`; the ChatML of Qwen2 for `chatml`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer

from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.errors import UserError

MAX_CHARACTERS = 2**22  # of a record: a tokenizer takes 200 bytes of memory and a microsecond for each
# Unicode keeps U+FDD0 to U+FDEF out of text for good, so what holds one cannot come from a record: `check_turns`
# refuses those, and lone surrogates, which no tokenizer takes.
_NOT_TEXT = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")
_MARK = "\ufdd0"  # with a private-use character after it: stands for one control token
_BREAK = "\ufdd1"  # breaks up the spelling of a control token while a chat template handles it
_SLOT, _SLOT_END = "\ufdd2", "\ufdd3"  # stand round a turn's number, for its text, in what a chat template writes
_PRIVATE_USE = 0xF0000  # the first code point of Unicode's largest private-use plane


@dataclasses.dataclass(frozen=True)
class Sample:
    """One rendered conversation of `L` tokens, before its images are expanded to their features."""

    tokens: (
        np.ndarray
    )  # int32[L]; BOS included if the tokenizer puts one; each image stands as one id, the renderer's `image_token_id`
    loss_weights: np.ndarray  # float32[L]; 1 where the token itself is supervised: the position before predicts it
    is_image: np.ndarray  # bool[L]; image placeholders, which the id alone does not tell (it may be <unk>)


@dataclasses.dataclass(frozen=True)
class Template:
    """How one family of models writes a conversation; `{bos}` and `{eos}` are the tokenizer's own tokens."""

    system: str  # the system message of a conversation that brings none
    opening: str  # before the first user text, with `{system}` in it
    bare_opening: str  # the same without a system message
    following: str  # before the user text of every later round
    ask: str  # after the user text; where a prompt ends
    before_answer: str  # supervised: the model writes it, since SentencePiece merges a space into the first word
    after_answer: str  # supervised: how the model ends its turn
    end: str = ""  # after the last answer
    control: tuple[str, ...] = ()  # spellings in the fields above that stand for one id, beside {bos} and {eos}
    strip_answers: bool = False  # where an answer follows a newline, a second newline could merge with it
    captions: bool = False  # one round, of which only the images and the answer are used


TEMPLATES: dict[str, Template] = {
    # Stage 1 of LLaVA: <s><image>caption\n without an end token.
    "plain": Template(
        system="", opening="", bare_opening="", following="", ask="", before_answer="", after_answer="\n", captions=True
    ),
    "vicuna_v1": Template(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        opening="{system} USER: ",
        bare_opening="USER: ",
        following="USER: ",
        ask=" ASSISTANT:",
        before_answer=" ",
        after_answer="{eos}",
    ),
    # LLaVA's "llava_llama_2". The system message is part of the first instruction.
    "llama2": Template(
        system="You are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.",
        opening="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n",
        bare_opening="[INST] ",
        following="{bos}[INST] ",
        ask=" [/INST]",
        before_answer=" ",
        after_answer=" {eos}",
    ),
    # The newline after an answer's <|im_end|> is written but not supervised: decoding has stopped before it.
    "chatml": Template(
        system="You are a helpful assistant.",
        opening="<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        bare_opening="<|im_start|>user\n",
        following="\n<|im_start|>user\n",
        ask="<|im_end|>\n<|im_start|>assistant\n",
        before_answer="",
        after_answer="<|im_end|>",
        end="\n",
        control=("<|im_start|>", "<|im_end|>"),
        strip_answers=True,
    ),
}
OWN_TEMPLATE = "tokenizer"  # the chat template in the tokenizer's files
ANSWERS = ("all", "last")  # of a conversation, those that are supervised


def place_images(text: str) -> str:
    """User text with its placeholders where the model gets them: "Who?\\n<image>" becomes "<image>\\nWho?"."""
    rest = text.replace(IMAGE, "")
    if text.count(IMAGE) != 1 or IMAGE in rest:  # taken out of "<<image>image>", one would leave another
        return text
    return f"{IMAGE}\n{rest.strip()}".strip()


def drop_leading_answer(record: Record) -> Record:
    """The record without an assistant turn before the first user turn; the same object if it has none.

    LLaVA drops such a turn in silence. Here the caller does, if it wants to, and counts the records that changed.
    """
    turns = record.turns
    skip = int(bool(turns) and turns[0].role == "system")
    if len(turns) <= skip or turns[skip].role != "assistant":
        return record
    return dataclasses.replace(record, turns=turns[:skip] + turns[skip + 1 :])


def check_turns(record: Record, *, last: str = "assistant", captions: bool = False) -> None:
    """Checks that a record can be rendered.

    Args:
      record: the record; its images are counted, not opened.
      last: role of its last turn: "assistant" to train on, "user" to be answered.
      captions: whether it is for a template with `captions`, where user text may be empty.

    Raises:
      RecordError: lists every problem of the record; its `reason` is that of the first.
    """
    problems: list[tuple[str, str]] = []
    turns = record.turns
    first = int(bool(turns) and turns[0].role == "system")
    for index, turn in enumerate(turns):
        where = f"turn {index} ({turn.role})"
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if index >= first and turn.role != expected:
            remedy = "mend the roles"
            if index == first and turn.role == "assistant":
                remedy = "drop that turn (drop_leading_answer does)"
            problems.append(("roles", f"{where}: roles alternate user, assistant from the first turn on; {remedy}"))
            break  # one misplaced role would be reported again at every turn after it
    for index, turn in enumerate(turns):
        where = f"turn {index} ({turn.role})"
        if not turn.text.strip() and turn.role != "system" and not (captions and turn.role == "user"):
            problems.append(("empty_turn", f"{where} is empty; fill it or drop the record"))
        found = _NOT_TEXT.search(turn.text)
        if found:
            name = f"U+{ord(found[0]):04X} at character {found.start()}"
            problems.append(("invalid_text", f"{where} holds {name}, which Unicode keeps out of text; remove it"))
    characters = sum(len(turn.text) for turn in turns)
    if characters > MAX_CHARACTERS:
        problem = f"its text has {characters:,} characters, the limit is {MAX_CHARACTERS:,}; split the record"
        problems.append(("text_too_long", problem))
    if len(turns) == first:
        problems.append(("no_turns", f"{len(turns)} turns and none of a user; drop the record"))
    elif turns[-1].role != last:
        problems.append(("last_turn", f"the last turn must be of role {last}, found {turns[-1].role}; add or cut one"))
    if captions and len(turns) - first > (2 if last == "assistant" else 1):
        problems.append(("rounds", f"a caption template takes one round, found {len(turns) - first} turns; split them"))
    placeholders = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    if placeholders != len(record.images):
        problems.append(
            (
                "image_count",
                f"user turns hold {placeholders} {IMAGE} for {len(record.images)} images; write one {IMAGE} an image",
            )
        )
    if problems:
        raise RecordError(
            f"{record.origin}: " + "; ".join(text for _, text in problems), origin=record.origin, reason=problems[0][0]
        )


class Renderer:
    """Renders records for one tokenizer and one template.

    It works on a copy of the tokenizer's backend in which every control token is plain text, and in which marks that
    no record can hold stand for those which the template writes. The tokenizer that was passed in is not changed.

    Attributes:
      stop_ids: ids that end an answer.

    Source: the images and the text between them are tokenized each for itself in `TEMPLATES`, as LLaVA does (hence
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
          image_token_id: the id that stands for an image.
          system: system message of records that bring none. None: the template's own; "": none at all (for the
            tokenizer's own template an empty message, of which that template makes what it likes).
          answers: which of a conversation are supervised: "all", or the "last" only.

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
            if template not in TEMPLATES:
                known = ", ".join((*TEMPLATES, OWN_TEMPLATE))
                raise UserError(f'no template "{template}"; templates: {known} (config.data.template)')
            template = TEMPLATES[template]
        self._tokenizer = tokenizer
        self._captions = isinstance(template, Template) and template.captions
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]

        written = tokenizer.backend_tokenizer.to_str()
        told = [written, tokenizer.chat_template, repr(template), image_token_id, system, answers]
        self._fingerprint = hashlib.blake2b(json.dumps(told, default=str).encode(), digest_size=16).hexdigest()
        state = json.loads(written)
        spellings = _control_spellings(tokenizer, template, state)
        control_ids = {*spellings.values(), image_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
        control_ids -= {None, tokenizer.unk_token_id}
        # The image's id may lie beyond the vocabulary; in the copy it is the id of something else then.
        control_ids = {token for token in control_ids if tokenizer.backend_tokenizer.id_to_token(token) is not None}
        self._backend, self._image_mark, marks = _marked_backend(state, control_ids, image_token_id, spellings)
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
        if isinstance(template, Template):
            self._script: _TemplateScript | _ChatScript = _TemplateScript(template, system, tokenizer, marks)
            if adds_bos:
                self._start = [self._mark_id(marks[tokenizer.bos_token])]
            stop_marks = [mark for mark in marks.values() if mark in self._script.after_answer]
            if not stop_marks:  # the newline of `plain`: as an id where it has one of its own, else in `decode`
                self._stop_text = template.after_answer
        else:
            # Its text holds the BOS if it is meant to be there, so none is added (transformers does the same).
            self._script = _ChatScript(system, tokenizer, marks, self._image_mark)
            stop_marks = self._script.probe()
        stop_ids = [int(self._real_id[self._mark_id(mark)]) for mark in stop_marks]
        if self._stop_text:
            stop_ids.append(self._backend.encode("a" + self._stop_text, add_special_tokens=False).ids[-1])
        if tokenizer.eos_token_id is not None:
            stop_ids.append(tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stop_ids))

    def __reduce__(self):
        # Rebuilt, not copied: the backend loses `encode_special_tokens` when it is pickled.
        return _rebuild_renderer, self._arguments

    def fingerprint(self) -> str:
        """A hash of all on which `render` depends: tokenizer, template, system message, choice of answers."""
        return self._fingerprint

    def _mark_id(self, mark: str) -> int:
        found = self._backend.token_to_id(mark)
        assert found is not None  # `_marked_backend` has added it
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
        draft = _Draft()
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

        Those the template wrote are marks still, so these come out of text: of a model that can merge "<", "/s" and
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


class _Draft:
    """A conversation while it is written: its text, cut at the images, and which characters are supervised."""

    def __init__(self):
        self.chunks: list[list[str]] = [[]]
        # Of each answer in order: its chunk, then in characters, first and behind the last, all that is supervised and
        # what the record says.
        self.spans: list[tuple[int, int, int, int, int]] = []
        self._length = 0  # of the last chunk, in characters

    def text(self, text: str) -> None:
        self._length += len(text)
        self.chunks[-1].append(text)

    def answer(self, before: str, answer: str, after: str) -> None:
        start, own = self._length, self._length + len(before)
        self.text(f"{before}{answer}{after}")
        self.spans.append((len(self.chunks) - 1, start, self._length, own, own + len(answer)))

    def image(self) -> None:
        self.chunks.append([])
        self._length = 0


class _TemplateScript:
    """Writes records by a `Template`."""

    def __init__(self, template: Template, system: str | None, tokenizer: Any, marks: dict[str, str]):
        names = {"{bos}": tokenizer.bos_token, "{eos}": tokenizer.eos_token} | {c: c for c in template.control}

        def marked(text: str) -> str:
            for name, spelling in names.items():
                text = text.replace(name, marks.get(spelling, ""))
            return text

        self._template = template
        self._system = template.system if system is None else system
        self._before_system, _, self._after_system = marked(template.opening).partition("{system}")
        self._bare_opening = marked(template.bare_opening)
        self._following = marked(template.following)
        self._ask = marked(template.ask)
        self._before_answer = marked(template.before_answer)
        self.after_answer = marked(template.after_answer)
        self._end = marked(template.end)

    def write(self, draft: _Draft, record: Record) -> None:
        template = self._template
        system, turns = _split_system(record.turns, self._system)
        opening = f"{self._before_system}{system}{self._after_system}" if system else self._bare_opening
        if template.captions:
            opening = ""
        for turn in turns:
            if turn.role == "user":
                parts = place_images(turn.text).split(IMAGE)
                if template.captions:
                    parts = [""] * len(parts)
                parts[0] = opening + parts[0]
                parts[-1] += self._ask
                opening = self._following
                for index, text in enumerate(parts):
                    if index:
                        draft.image()
                    draft.text(text)
            else:
                answer = turn.text.strip() if template.strip_answers else turn.text
                draft.answer(self._before_answer, answer, self.after_answer)
        if turns[-1].role == "assistant":
            draft.text(self._end)


class _ChatScript:
    """Writes records by the tokenizer's own chat template (Jinja).

    The template is rendered up to each answer and again up to its end. What the second adds to the first is supervised,
    except white space after the control token that ends the turn. That takes a render for each turn, so it is done once
    for all conversations of the same roles, with slots for their contents. A record is rendered once, as a whole: where
    that is the filled-in form, it is used; otherwise the record is rendered turn by turn itself.
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
        # Longest first, so that "<|im_end|>" is not found as a shorter token and a rest.
        longest_first = sorted(marks, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        try:
            tokenizer.get_chat_template()
        except ValueError as error:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r} has chat templates {', '.join(sorted(tokenizer.chat_template))} "
                'and none of them is the "default"; keep one of them in its files, as chat_template.jinja'
            ) from error
        self._forms: dict[tuple[str, ...], list[str]] = {}  # by roles: what each turn adds, contents as in `str.format`

    def probe(self) -> list[str]:
        """Marks of the control token that ends an answer, none if the template ends it by text.

        Raises:
          UserError: the template cannot render one question and answer, or not in the way `write` needs.
        """
        turns = (Turn("user", "question"), Turn("assistant", "answer"), Turn("user", "more"))
        probe = Record(id="probe", turns=turns, images=(), origin="a probe of two rounds")
        draft = _Draft()
        try:
            self.write(draft, probe)
            question = [{"role": "user", "content": "question"}]
            asked, bare = (self._rendered(question, "", probe, add_generation_prompt=ask) for ask in (True, False))
        except RecordError as error:
            raise UserError(str(error)) from error
        _, start, stop, _, _ = draft.spans[0]
        written = "".join(draft.chunks[0])[start:stop]
        if asked == bare and not written.lstrip().startswith("answer"):
            raise UserError(str(self._error(probe, "it writes a header before the answer that no prompt ends with")))
        return [mark for mark in self._all_marks if written.endswith(mark)]

    def write(self, draft: _Draft, record: Record) -> None:
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
                supervised = text  # white space is how this template ends a turn
            before, answer, after = supervised.partition(answers[index // 2])
            if answer:
                draft.answer(before, answer, after)
            else:  # this template writes it otherwise
                draft.answer("", supervised, "")
            draft.text(text[len(supervised) :])

    def _content(self, turn: Turn) -> str:
        """A turn's text as the template is to write it."""
        if turn.role == "user":
            return place_images(turn.text).replace(IMAGE, self._image_mark)
        # Stripped, as many templates do: the text before an answer may end in a newline, which could merge.
        return turn.text.strip() if turn.role == "assistant" else turn.text

    def _filled_in(self, record: Record, contents: Sequence[str]) -> list[str] | None:
        """What each turn adds, from the form of the record's roles; None if the template writes something else."""
        messages = self._messages(record, [*map(self._escaped, contents)])
        try:
            texts = [form.format(*contents) for form in self._forms_for(record)]
            whole = self._rendered(messages, "", record, add_generation_prompt=messages[-1]["role"] == "user")
        except RecordError:
            return None  # turn by turn it is seen which one the template refuses
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
        """What each turn adds to the text before it, the prompt of an answer with the user's turn."""
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
        """Breaks up every control token spelled in `text`, also one that would begin with the last character."""
        return self._control.sub(lambda found: _BREAK.join(found[0]) + _BREAK, text)

    def _marked(self, text: str) -> str:
        """Text of the template with marks for its control tokens and what `_escaped` broke up put together again."""
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


def _split_system(turns: Sequence[Turn], system: str | None) -> tuple[str | None, Sequence[Turn]]:
    """The system message, the record's own before the given one, and the other turns."""
    if turns[0].role == "system":
        return turns[0].text, turns[1:]
    return system, turns


def _control_spellings(tokenizer: Any, template: str | Template, state: dict) -> dict[str, int]:
    """Id of every control token that the template can write, by its spelling."""
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
            f"the template writes tokens that {tokenizer.name_or_path!r} has not: {', '.join(missing)}; "
            "choose another template (config.data.template) or add them to the tokenizer"
        )
    return ids


def _marked_backend(
    state: dict, control_ids: set[int], image_token_id: int, spellings: dict[str, int]
) -> tuple[Tokenizer, str, dict[str, str]]:
    """A tokenizer to which control tokens are text, its mark for an image, and its mark for each spelling.

    A mark is an added token with the white space rules of the token for which it stands, so the text after it is
    tokenized as after that token ("USER" after "</s>" has a space put before it by old Llama tokenizers only).
    """
    flags = {token["id"]: token for token in state["added_tokens"]}
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in control_ids
    backend = Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}))
    backend.encode_special_tokens = True  # to tokenizers: split special tokens as text

    marks = [_MARK + chr(_PRIVATE_USE + index) for index in range(1 + len(spellings))]
    ids = [image_token_id, *spellings.values()]
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
    own = dict(zip(spellings, marks[1:], strict=True))
    if spellings.get(IMAGE) == image_token_id:  # one that a chat template writes; the end token may have the same id
        own[IMAGE] = marks[0]
    return backend, marks[0], own


def _token_range(encoding: Encoding, start: int, stop: int) -> tuple[int, int]:
    """Tokens that hold a character of [start, stop), as (first, last + 1).

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
