"""The built-in chat templates and their script.

Source: LLaVA-1.5 (arXiv:2310.03744), its llava/train/train.py and llava/mm_utils.py for the token sequence of `plain`,
`vicuna_v1` and `llama2`; the ChatML of Qwen2 for `chatml`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxvlm.data.records import IMAGE, Record, Turn
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Template:
    """How one family of models writes a conversation; `{bos}` and `{eos}` are the tokenizer's own tokens."""

    system: str  # the system message of a conversation without one
    opening: str  # before the first user text, with `{system}` in it
    bare_opening: str  # the same without a system message
    following: str  # before the user text of every later round
    ask: str  # after the user text; where a prompt ends
    before_answer: str  # supervised: the model writes it, since SentencePiece merges a space into the first word
    after_answer: str  # supervised: the end of the model's turn
    end: str = ""  # after the last answer
    control: tuple[str, ...] = ()  # spellings in the fields above that are one id each, as {bos} and {eos} are
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
ANSWERS = ("all", "last")  # which answers of a conversation are supervised


def find_template(name: str) -> Template:
    """The built-in template of a name.

    Raises:
      UserError: there is none.
    """
    if name not in TEMPLATES:
        known = ", ".join((*TEMPLATES, OWN_TEMPLATE))
        raise UserError(f'no template "{name}"; templates: {known} (config.data.template)')
    return TEMPLATES[name]


def place_images(text: str) -> str:
    """User text with its placeholders where the model sees them: "Who?\\n<image>" becomes "<image>\\nWho?"."""
    rest = text.replace(IMAGE, "")
    if text.count(IMAGE) != 1 or IMAGE in rest:  # removing one from "<<image>image>" would leave another
        return text
    return f"{IMAGE}\n{rest.strip()}".strip()


class Draft:
    """A conversation while it is written: its text, cut at the images, and which characters are supervised.

    Attributes:
      chunks: the pieces of text before, between and after the images.
      spans: of each answer in order its chunk and, in characters of it, first and one past the last of the
        supervised text, then of the record's own text.
    """

    def __init__(self) -> None:
        self.chunks: list[list[str]] = [[]]
        self.spans: list[tuple[int, int, int, int, int]] = []
        self._length = 0  # of the last chunk, in characters

    def text(self, text: str) -> None:
        """Adds text that is not supervised."""
        self._length += len(text)
        self.chunks[-1].append(text)

    def answer(self, before: str, answer: str, after: str) -> None:
        """Adds an answer, supervised with the text before and after it."""
        start, own = self._length, self._length + len(before)
        self.text(f"{before}{answer}{after}")
        self.spans.append((len(self.chunks) - 1, start, self._length, own, own + len(answer)))

    def image(self) -> None:
        """Adds an image."""
        self.chunks.append([])
        self._length = 0


class TemplateScript:
    """Writes records by a `Template`."""

    def __init__(self, template: Template, system: str | None, tokens: Mapping[str, str]):
        """Prepares the pieces.

        Args:
          system: message of records without one; None: the template's own.
          tokens: what is written for "{bos}", "{eos}" and each of `template.control`.
        """

        def marked(text: str) -> str:
            for name, written in tokens.items():
                text = text.replace(name, written)
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

    def write(self, draft: Draft, record: Record) -> None:
        """Writes a record that `turns.check_turns` accepts."""
        template = self._template
        system, turns = split_system(record.turns, self._system)
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


def split_system(turns: Sequence[Turn], system: str | None) -> tuple[str | None, Sequence[Turn]]:
    """The system message, the record's own before the given one, and the other turns."""
    if turns[0].role == "system":
        return turns[0].text, turns[1:]
    return system, turns
