"""A process that measures one side of one measurement: commands as lines of JSON come in, answers go out.

  {"do": "describe"}                                                       -> devices and versions
  {"do": "build", "measurement": "lora", "setting": {...}, "tiny": false}  -> sizes, seconds to compile
  {"do": "run", "kind": "full", "count": 3}                                -> a list of what each run took
  {"do": "trace", "kind": "full"}                                          -> shares of the time
  {"do": "peak"}                                                           -> bytes

An answer is {"value": ...}, or {"error": "...", "is_out_of_memory": true}. All other output goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

SIDES = {"jaxvlm": "ours", "transformers": "theirs"}


def main(side: str) -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    file = importlib.import_module(f"tests.benchmarks.accelerator.{SIDES[side]}")
    file.prepare()
    held: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            answer = {"value": _do(file, held, json.loads(line))}
        except Exception as error:
            text = " ".join(str(error).split())
            answer = {
                "error": f"{type(error).__name__}: {text[:300]}",
                "is_out_of_memory": file.is_out_of_memory(error),
            }
        answers.write(json.dumps(answer) + "\n")


def _do(file: Any, held: dict[str, Any], command: dict[str, Any]) -> Any:
    what = command["do"]
    if what == "describe":
        return file.describe()
    if what == "matmul":
        return file.matmul_flops()
    if what == "build":
        from tests.benchmarks.accelerator.measurements import MEASUREMENTS, Setting

        measurement = MEASUREMENTS[command["measurement"]]
        setting = Setting(**command["setting"]) if command["setting"] else None
        make = file.Training if measurement.is_training else file.Decoding
        held["side"] = make(measurement, setting, command["tiny"], **command.get("more", {}))
        return held["side"].describe()
    side = held["side"]
    if what == "run":
        return [side.run(command["kind"]) for _ in range(command["count"])]
    return side.trace(command["kind"]) if what == "trace" else side.peak_bytes()


if __name__ == "__main__":
    main(sys.argv[1])
