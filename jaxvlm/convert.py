"""Imports Hugging Face checkpoints, exports to them, and compares two checkpoints.

Examples:
  python -m jaxvlm.convert import --from llava-hf/llava-1.5-7b-hf --to runs/llava
  python -m jaxvlm.convert import --from openai/clip-vit-large-patch14-336 --from lmsys/vicuna-7b-v1.5 --to runs/start
  python -m jaxvlm.convert export --run runs/mine --out exported --dtype bfloat16
  python -m jaxvlm.convert export --run runs/mine --out exported/decoder --part language
  python -m jaxvlm.convert export --run runs/mine --out exported/projector --part projector
  python -m jaxvlm.convert export --run runs/lora --out exported/adapter --adapter --base llava-hf/llava-1.5-7b-hf
  python -m jaxvlm.convert verify exported runs/mine --logits --image a.png --prompt "What is this?"

`import` makes a run that `generate`, `evaluate` and a recipe's init.model can open (a recipe can also name the source
itself, without a copy). `export` makes a folder that transformers loads. `jaxvlm convert COMMAND --help` explains each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jaxvlm.command import Parser, Subparser, run
from jaxvlm.config import PARTS

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str]) -> dict[str, Any] | None:
    """Runs the command; returns what `--json` prints."""
    parser = Parser("convert", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Subparser)

    into = commands.add_parser("import", help="make a run from Hugging Face checkpoints")
    into.add_argument("--from", action="append", required=True, dest="sources", metavar="SOURCE", help=_SOURCE_HELP)
    into.add_argument("--adapter", metavar="FOLDER", help="adapters of these weights, in PEFT's form; also on the hub")
    into.add_argument("--to", required=True, metavar="DIR", type=Path, help="folder of the new run")
    into.add_argument(
        "--template", metavar="NAME", help="conversation template (default: the tokenizer's own, or vicuna_v1)"
    )
    into.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random projector, if no source has one"
    )

    out = commands.add_parser("export", help="make a Hugging Face folder from a run")
    out.add_argument("--run", required=True, metavar="DIR", type=Path, help="folder of the run")
    out.add_argument("--stage", default="", metavar="NAME", help="stage of the weights (default: the last)")
    out.add_argument("--step", type=int, default=0, metavar="N", help="step of the weights (default: the newest)")
    out.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="the new folder")
    out.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    out.add_argument("--part", choices=PARTS, help="export one part alone; the projector in the original LLaVA's form")
    out.add_argument("--dtype", choices=DTYPES, help="dtype of the files (default: that of each weight in the run)")
    out.add_argument(
        "--shard-size", default="5GB", metavar="SIZE", help="maximum size of a file, such as 500MB (default: 5GB)"
    )
    out.add_argument("--resize-embeddings", action="store_true", help="add rows if <image> has none in the embedding")
    out.add_argument("--merge", action="store_true", help="fold adapters into the weights they adapt")
    out.add_argument("--adapter", action="store_true", help="write only adapters and projector, in PEFT's form")
    out.add_argument("--base", default="", metavar="NAME", help="with --adapter: name of the base model")
    out.add_argument(
        "--push-to-hub", metavar="NAME", help="also upload to this repository (log in with `hf auth login`)"
    )

    verify = commands.add_parser("verify", help="compare two checkpoints: names, shapes, dtypes, values")
    verify.add_argument("a", metavar="A", type=Path, help="a Hugging Face folder or a run")
    verify.add_argument("b", metavar="B", type=Path, help="another")
    verify.add_argument("--logits", action="store_true", help="also run both on --prompt (folders in torch)")
    verify.add_argument("--image", action="append", default=[], metavar="FILE", help="with --logits; may be repeated")
    verify.add_argument("--prompt", default="Describe the image.", metavar="TEXT", help="with --logits")

    args = parser.parse_args(argv)

    from jaxvlm.conversion import export_run, import_run, verify_pair  # here: it takes seconds, and --help needs none

    if args.command == "verify":
        return verify_pair(args, print)
    return {"import": import_run, "export": export_run}[args.command](args)


_SOURCE_HELP = "a folder, a GGUF file or a name on the hub; may be repeated, for an encoder and a decoder"


if __name__ == "__main__":
    sys.exit(run(main))
