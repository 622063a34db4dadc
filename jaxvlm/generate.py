"""Answers a question about images with a run's model, or holds a conversation.

Examples:
  python -m jaxvlm.generate --run runs/quickstart --image a.png --prompt "what color is the shape?"
  python -m jaxvlm.generate --run runs/mine --image a.png --image b.png --prompt "What differs?" --temperature 0.7
  python -m jaxvlm.generate --run runs/mine --image a.png
  python -m jaxvlm.generate --run runs/mine --image a.png < questions.txt
  python -m jaxvlm.generate --run runs/mine --system "Answer in one word." --image a.png --prompt "What is this?"

The images come before the text, in their order, unless the text has <image> where each belongs.

Without --prompt each line of standard input is a turn of one conversation, answered as it comes:
  /image FILE   adds an image to the next turn
  /reset        starts a new conversation, without images
  /quit         ends, as does the end of the input
  Ctrl-C        on a terminal, during an answer: cancels it, and the conversation continues without the turn
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.command import Parser, run
from jaxvlm.errors import UserError

if TYPE_CHECKING:
    from jaxvlm.inference.conversation import Conversation


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints: the answer, or all turns of the conversation."""
    parser = Parser("generate", __doc__)
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--prompt", metavar="TEXT", help="the question (default: a conversation on standard input)")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: that of the training; '': none)")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="0: always the most likely token (default of this, P and K: config.generation of the run)",
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the most likely tokens of this total probability"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens (0: from all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer")
    parser.add_argument("--stage", default="", metavar="NAME", help="stage of the weights (default: the last)")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="step of the weights (default: the newest)")
    args = parser.parse_args(argv)
    # Here, since they take seconds, and --help needs none of them.
    from jaxvlm.config_reading import to_dict
    from jaxvlm.data.text.templates import TEMPLATES
    from jaxvlm.inference.conversation import Conversation, check_image
    from jaxvlm.inference.engine import Engine
    from jaxvlm.inference.sampling import Sampling
    from jaxvlm.processes import log
    from jaxvlm.restore import open_run
    from jaxvlm.runs import RunFolder

    # Check the arguments before the weights are read, which takes a while.
    chosen = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    sampling = Sampling(**to_dict(RunFolder(args.run).load_config().generation) | chosen, seed=args.seed)
    if sampling.temperature and "temperature" not in chosen:
        log(f"sampling: temperature {sampling.temperature}, top-p {sampling.top_p}, top-k {sampling.top_k}")
    for image in args.image:
        check_image(image)
    engine = Engine.of(open_run(Path(args.run), stage=args.stage, step=args.step))
    if args.system is not None:
        template = TEMPLATES.get(engine.data.template)
        if args.system and template is not None and template.captions:
            raise UserError(
                f'--system: the run\'s template "{engine.data.template}" writes no system message; leave it out'
            )
        engine = dataclasses.replace(engine, data=dataclasses.replace(engine.data, system=args.system))

    conversation = Conversation(engine, sampling, args.max_new_tokens)
    conversation.add_images(args.image)
    if args.prompt is None:
        return {"turns": list(_converse(conversation))}
    return {"answer": _print_answer(conversation, args.prompt)}


def _print_answer(conversation: Conversation, text: str) -> str:
    """Prints the answer to a turn as it is written."""
    answer = ""
    try:
        with contextlib.closing(conversation.stream(text)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
                answer += piece
    except BaseException:
        if answer:
            print(flush=True)  # ends the line that was started
        raise
    print(flush=True)
    return answer


def _converse(conversation: Conversation) -> Iterator[dict[str, str]]:
    """Answers the lines of standard input; yields each question with its answer."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("ask; /image FILE adds an image, /reset begins again, /quit ends", file=sys.stderr)
    for line in _lines(is_terminal):
        text = line.strip()
        if text == "/quit":
            return
        try:
            if text and not _obey(conversation, text):
                yield {"question": text, "answer": _print_answer(conversation, text)}
        except UserError as error:
            if not is_terminal:
                raise
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("the answer was cancelled, and its question dropped", file=sys.stderr)


def _lines(is_terminal: bool) -> Iterator[str]:
    while is_terminal:
        try:
            yield input("> ")
        except EOFError:
            return
    yield from sys.stdin


def _obey(conversation: Conversation, text: str) -> bool:
    """Runs a line if it is a command; returns whether it was one."""
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


if __name__ == "__main__":
    sys.exit(run(main))
