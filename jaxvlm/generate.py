"""Answers a question with a run's model or with published weights, or holds a conversation; with images or without.

Examples:
  python -m jaxvlm.generate --run runs/quickstart --image a.png --prompt "what color is the shape?"
  python -m jaxvlm.generate --run runs/mine --image a.png --image b.png --prompt "What differs?" --temperature 0.7
  python -m jaxvlm.generate --run runs/mine --image a.png
  python -m jaxvlm.generate --run runs/mine --image a.png < questions.txt
  python -m jaxvlm.generate --run runs/mine --system "Answer in one word." --image a.png --prompt "What is this?"
  python -m jaxvlm.generate --from SmolLM2.gguf --prompt "What is the capital of France?"
  python -m jaxvlm.generate --from Qwen/Qwen3-0.6B --prompt "Name three rivers." --stop "2."
  python -m jaxvlm.generate --from llava-hf/llava-1.5-7b-hf --image a.png --prompt "What is this?"
  python -m jaxvlm.generate --from Qwen/Qwen2.5-VL-3B-Instruct --video a.mp4 --prompt "What happens?"
  python -m jaxvlm.generate --from llava-hf/llava-1.5-7b-hf --adapter ADAPTER_FOLDER --image a.png --prompt "Hi?"
  python -m jaxvlm.generate --from CLIP_FOLDER --from PROJECTOR_FOLDER --from LLAMA_FOLDER --image a.png

--from takes what `convert import` takes, and makes no run: a Hugging Face folder, a GGUF file, or a name on the hub.
Chat template, system message, stop tokens, sampling and longest prompt are those of its files; a line lists them.
--adapter adds adapters of these weights, as PEFT saves them.

Images and videos come before the text, in their order, unless the text has <image> or <video> where each belongs.

Without --prompt each line of standard input is a turn of one conversation, answered as it comes:
  /image FILE   adds an image to the next turn
  /video FILE   adds a video
  /reset        starts a new conversation, without images and videos
  /quit         ends, as does the end of the input
  Ctrl-C        on a terminal, during an answer: cancels it, and the conversation continues without the turn
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxvlm.command import Parser, run
from jaxvlm.errors import UserError
from jaxvlm.media import Video
from jaxvlm.model_flags import add_model_flags, check_model_flags, open_flags, with_system

if TYPE_CHECKING:
    from jaxvlm.config import Config
    from jaxvlm.inference.conversation import Conversation
    from jaxvlm.inference.engine import Engine
    from jaxvlm.inference.sampling import Sampling


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints: the answer, or all turns of the conversation."""
    args = _parser().parse_args(argv)
    check_model_flags(args)
    # Here, since they take seconds, and --help needs none of them.
    from jaxvlm.inference.conversation import Conversation, check_medium
    from jaxvlm.inference.engine import Engine
    from jaxvlm.inference.stop_texts import StopTexts

    # Check the arguments before the weights are read, which takes a while.
    StopTexts(args.stop)
    config, load = open_flags(args)
    sampling = _sampling(args, config)
    for medium in args.media:
        check_medium(medium)
    engine = _with_stop_tokens(with_system(Engine.of(load()), args.system), args.stop)
    del load  # what was read of the sources; for a GGUF file of 49,000 tokens 220 MiB
    conversation = Conversation(engine, sampling, args.max_new_tokens, args.stop)
    conversation.add(args.media)
    if args.prompt is None:
        return {"turns": list(_converse(conversation))}
    return {"answer": _print_answer(conversation, args.prompt)}


def _parser() -> Parser:
    parser = Parser("generate", __doc__)
    add_model_flags(parser)
    media: dict[str, Any] = {"action": "append", "dest": "media", "metavar": "FILE"}
    parser.add_argument("--image", default=[], help="an image; may be repeated", **media)
    parser.add_argument("--video", type=Video, help="a video, of families that take them; may be repeated", **media)
    parser.add_argument("--prompt", metavar="TEXT", help="the question (default: a conversation on standard input)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end an answer before this text; may be repeated"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="0: always the most likely token (default of this, P and K: those of the run or the source)",
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the most likely tokens of this total probability"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens (0: from all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampling")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer")
    return parser


def _sampling(args: argparse.Namespace, config: Config) -> Sampling:
    """The sampling of the flags, and for those not given, of the model."""
    from jaxvlm.config_reading import to_dict
    from jaxvlm.inference.sampling import Sampling
    from jaxvlm.processes import log

    chosen = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    sampling = Sampling(**to_dict(config.generation) | chosen, seed=args.seed)
    if sampling.temperature and "temperature" not in chosen:
        log(f"sampling: temperature {sampling.temperature}, top-p {sampling.top_p}, top-k {sampling.top_k}")
    return sampling


def _with_stop_tokens(engine: Engine, stops: list[str]) -> Engine:
    """The engine, which also ends an answer at those of `stops` that spell a special token: they are never text."""
    special = tuple(stop for stop in stops if stop in engine.tokenizer.all_special_tokens)
    data = dataclasses.replace(engine.data, stop_tokens=(*engine.data.stop_tokens, *special))
    return dataclasses.replace(engine, data=data) if special else engine


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
        print("ask; /image FILE or /video FILE adds one, /reset begins again, /quit ends", file=sys.stderr)
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
    elif command in ("/image", "/video") and (file := rest.strip()):
        conversation.add([file if command == "/image" else Video(file)])
    else:
        raise UserError(f'"{text}" is no command; commands: /image FILE, /video FILE, /reset, /quit')
    return True


if __name__ == "__main__":
    sys.exit(run(main))
