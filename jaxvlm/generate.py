"""Answers a question about images with a run's model, or holds a conversation.

Examples:
  python -m jaxvlm.generate --run runs/quickstart --image a.png --prompt "what color is the shape?"
  python -m jaxvlm.generate --run runs/mine --image a.png --image b.png --prompt "What differs?" --temperature 0.7
  python -m jaxvlm.generate --run runs/mine --image a.png
  python -m jaxvlm.generate --run runs/mine --image a.png < questions.txt

The images come before the text, in their order, unless the text says with <image> where each belongs.

Without --prompt each line of standard input is a turn of one conversation, answered as it comes:
  /image FILE   adds an image to the next turn
  /reset        begins anew, without the images so far
  /quit         ends, as does the end of the input
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxvlm.command import Parser, run
from jaxvlm.data.media.images import decode
from jaxvlm.data.records import IMAGE, Record, Turn
from jaxvlm.errors import UserError
from jaxvlm.inference.chat import answer
from jaxvlm.inference.decode import Sampling
from jaxvlm.restore import Run, open_run
from jaxvlm.runs import RunFolder


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints: the answer, or all turns of the conversation."""
    parser = Parser("generate", __doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--prompt", metavar="TEXT", help="the question (default: a conversation on standard input)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0: the likeliest token each time")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest of this share")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer")
    parser.add_argument("--stage", default="", metavar="NAME", help="stage of the weights (default: the last)")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="step of the weights (default: the newest)")
    args = parser.parse_args(argv)
    # What can be wrong is found before the weights are read, which takes a while.
    sampling = Sampling(args.temperature, args.top_p, args.seed)
    RunFolder(args.run).load_config()
    for image in args.image:
        _check_image(image)
    opened = open_run(Path(args.run), stage=args.stage, step=args.step)

    conversation = Conversation(opened, sampling, args.max_new_tokens)
    conversation.add_images(args.image)
    if args.prompt is None:
        return {"turns": list(_converse(conversation))}
    text = conversation.ask(args.prompt)
    print(text)
    return {"answer": text}


class Conversation:
    """A conversation with a run's model; remembers its turns and images."""

    def __init__(self, opened: Run, sampling: Sampling, max_new_tokens: int):
        self._run, self._sampling, self._max_new_tokens = opened, sampling, max_new_tokens
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._turns: tuple[Turn, ...] = ()
        self._images: tuple[str, ...] = ()
        self._waiting: tuple[str, ...] = ()  # images of the next turn

    def add_images(self, images: list[str]) -> None:
        """Adds images to the next turn.

        Raises:
          UserError: one is missing or broken; none is added.
        """
        for image in images:
            _check_image(image)
        self._waiting += tuple(images)

    def ask(self, text: str) -> str:
        """The answer to a user turn; both are remembered.

        Raises:
          UserError: the conversation is too long for the model, or `<image>` does not stand once for each image; the
            turn is forgotten, its images are not.
        """
        placed = text.count(IMAGE)
        if placed and placed != len(self._waiting):
            raise UserError(
                f"the text has {placed} {IMAGE} for {len(self._waiting)} images; write one for each, or none at all"
            )
        if not placed:
            text = "".join(f"{IMAGE}\n" for _ in self._waiting) + text
        turns = (*self._turns, Turn("user", text))
        images = self._images + self._waiting
        reply = self._answer(Record("conversation", turns, images, f"turn {len(turns) // 2 + 1}"))
        if reply:  # templates take no empty turn: a question without an answer counts as not asked
            self._turns, self._images, self._waiting = (*turns, Turn("assistant", reply)), images, ()
        return reply

    def _answer(self, record: Record) -> str:
        # A seed for each turn, or a question asked twice would draw the same numbers twice.
        seed = (self._sampling.seed + len(self._turns)) % 2**32
        return answer(
            self._run.model,
            self._run.params,
            self._run.tokenizer,
            self._run.stage.data,
            [record],
            mesh=self._run.mesh,
            rules=self._run.rules,
            max_new_tokens=self._max_new_tokens,
            batch_size=1,
            sampling=dataclasses.replace(self._sampling, seed=seed),
        )[0]


def _converse(conversation: Conversation) -> Iterator[dict[str, str]]:
    """Answers the lines of standard input; yields each question with its answer."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("ask; /image FILE adds an image, /reset begins anew, /quit ends", file=sys.stderr)
    for line in _lines(is_terminal):
        text = line.strip()
        if text == "/quit":
            return
        try:
            if text and not _obey(conversation, text):
                reply = conversation.ask(text)
                print(reply, flush=True)
                yield {"question": text, "answer": reply}
        except UserError as error:
            if not is_terminal:
                raise
            print(f"error: {error}", file=sys.stderr)


def _lines(is_terminal: bool) -> Iterator[str]:
    while is_terminal:
        try:
            yield input("> ")
        except EOFError:
            return
    yield from sys.stdin


def _obey(conversation: Conversation, text: str) -> bool:
    """Does what a line asks for if it is a command; says whether it was."""
    command, _, rest = text.partition(" ")
    if not re.fullmatch("/[a-z]+", command):
        return False
    if command == "/reset":
        conversation.reset()
    elif command == "/image" and rest.strip():
        conversation.add_images([rest.strip()])
    else:
        raise UserError(f'"{text}" is no command; commands: /image FILE, /reset, /quit')
    return True


def _check_image(image: str) -> None:
    decode(image, "--image")


if __name__ == "__main__":
    sys.exit(run(main))
