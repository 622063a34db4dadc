"""The built-in chat templates, and the script that writes records with them.

Source: `plain`, `vicuna_v1` and `llama2`: LLaVA-1.5 (arXiv:2310.03744), with the token sequence of its
llava/train/train.py and llava/mm_utils.py; `chatml`: the ChatML of Qwen2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxvlm.data.records import Record, Turn, has_videos, split_media, unspelled
from jaxvlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Template:
    """The layout of a conversation for one family of models; `{bos}` and `{eos}` are the tokenizer's own tokens."""

    system: str  # the system message of a conversation that has none
    opening: str  # before the first user text, with `{system}` in it
    bare_opening: str  # the same without a system message
    following: str  # before the user text of every later round
    ask: str  # after the user text; a prompt ends with it
    before_answer: str  # supervised: SentencePiece merges a space into the first word, so the model must generate it
    after_answer: str  # supervised: the end of the model's turn
    end: str = ""  # after the last answer
    control: tuple[str, ...] = ()  # spellings in the fields above that are a single id each, like {bos} and {eos}
    captions: bool = False  # a conversation has one round, and only its images and its answer are used
    documents: bool = False  # a record is a text without a question

    @property
    def takes_system(self) -> bool:
        """Whether it writes a system message."""
        return "{system}" in self.opening


TEMPLATES: dict[str, Template] = {
    # Stage 1 of LLaVA: <s><image>caption\n, without an end token.
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
    # The newline after an answer's <|im_end|> is written but not supervised, since decoding stops before it.
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
    ),
    # Texts to be continued, with an end token between them.
    "document": Template(
        system="",
        opening="",
        bare_opening="",
        following="",
        ask="",
        before_answer="",
        after_answer="{eos}",
        documents=True,
    ),
}
OWN_TEMPLATE = "tokenizer"  # name of the chat template in the tokenizer's files
ANSWERS = ("all", "last")  # which answers of a conversation are supervised


def find_template(name: str) -> Template:
    """Returns the built-in template with this name.

    Raises:
      UserError: there is none.
    """
    if name not in TEMPLATES:
        known = ", ".join((*TEMPLATES, OWN_TEMPLATE))
        raise UserError(f'no template "{name}"; templates: {known} (config.data.template)')
    return TEMPLATES[name]


def place_images(text: str, *, videos: bool = False) -> str:
    """Moves a single placeholder to the front of user text: "Who?\\n<image>" becomes "<image>\\nWho?".

    Args:
      videos: as in `split_media`.
    """
    pieces = split_media(text, videos=videos)
    rest = "".join(pieces[::2])
    if len(pieces) != 3 or len(split_media(rest, videos=videos)) > 1:  # "<<image>image>" would leave another
        return text
    return f"{pieces[1]}\n{rest.strip()}".strip()


class Draft:
    """A conversation while it is being written: its text, split at media, and which characters are supervised.

    Attributes:
      notes: what a template does with the record that its author may not expect.
      chunks: the pieces of text before, between and after the media.
      media: the placeholder between each piece and the next.
      spans: for each answer, in order, (chunk, start, stop, own start, own stop, weight): its chunk, the range of its
        supervised characters, the range of those that come from the record, and their weight in the loss. Ranges count
        characters of the chunk.
    """

    def __init__(self) -> None:
        self.chunks: list[list[str]] = [[]]
        self.media: list[str] = []
        self.spans: list[tuple[int, int, int, int, int, float]] = []
        self.notes: set[str] = set()
        self._length = 0  # of the last chunk, in characters

    def text(self, text: str) -> None:
        """Adds text that is not supervised; from here on a `spelled` placeholder is only text."""
        text = unspelled(text)
        self._length += len(text)
        self.chunks[-1].append(text)

    def answer(self, before: str, answer: str, after: str, weight: float = 1.0) -> None:
        """Adds an answer and the text before and after it, all of it supervised."""
        start, own = self._length, self._length + len(before)
        self.text(f"{before}{answer}{after}")
        self.spans.append((len(self.chunks) - 1, start, self._length, own, own + len(answer), weight))

    def medium(self, placeholder: str) -> None:
        """Adds an image or a video."""
        self.media.append(placeholder)
        self.chunks.append([])
        self._length = 0


class TemplateScript:
    """Writes records with a `Template`."""

    def __init__(self, template: Template, system: str | None, tokens: Mapping[str, str]):
        """Prepares the pieces.

        Args:
          system: system message of records that have none; None: the template's own.
          tokens: the text to write for "{bos}", "{eos}" and each of `template.control`.
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
        """Writes a record that has passed `turns.check_turns`."""
        template = self._template
        system, turns = split_system(record.turns, self._system)
        videos = has_videos(record.images)
        opening = f"{self._before_system}{system}{self._after_system}" if system else self._bare_opening
        if template.captions or template.documents:
            opening = ""
        for turn in turns:
            if turn.role == "user":
                parts = split_media(place_images(turn.text, videos=videos), videos=videos)
                if template.captions:
                    parts[::2] = [""] * len(parts[::2])
                parts[0] = opening + parts[0]
                parts[-1] += self._ask
                opening = self._following
                draft.text(parts[0])
                for placeholder, text in zip(parts[1::2], parts[2::2], strict=True):
                    draft.medium(placeholder)
                    draft.text(text)
            else:
                after = "" if record.continues else self.after_answer
                draft.answer(self._before_answer, turn.text, after, turn.weight)
        if turns[-1].role == "assistant":
            draft.text(self._end)


def split_system(turns: Sequence[Turn], system: str | None) -> tuple[str | None, Sequence[Turn]]:
    """Splits turns into the system message (`system` if they have none) and the other turns."""
    if turns[0].role == "system":
        return turns[0].text, turns[1:]
    return system, turns
