"""`jaxvlm COMMAND ...` is the same as `python -m jaxvlm.COMMAND ...`."""

from __future__ import annotations

import importlib
import sys

from jaxvlm.command import run

COMMANDS = {
    "train": "train a recipe's stages, then test the result",
    "evaluate": "measure a model on benchmarks, or on a data set by exact match",
    "inspect_data": "check a recipe's data, show it as the model sees it, prepare it",
    "plan": "report whether a recipe fits a TPU slice, its speed there and its cost",
    "convert": "take weights from Hugging Face checkpoints, give them back, compare two",
    "generate": "answer questions about images, or hold a conversation",
    "serve": "answer over HTTP, as OpenAI's chat completions",
    "studio": "make, start, watch and compare runs in a browser",
}


def main() -> None:
    """Dispatches to the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        listing = "\n".join(f"  {command:12} {what}" for command, what in COMMANDS.items())
        print(f"usage: jaxvlm COMMAND ...\n\n{listing}\n\n`jaxvlm COMMAND --help` explains each.")
        sys.exit(0 if name in ("--help", "-h") else 2)
    module = importlib.import_module(f"jaxvlm.{name}")
    sys.exit(run(module.main, sys.argv[2:]))


if __name__ == "__main__":
    main()
