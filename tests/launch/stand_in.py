"""Stands in for gcloud, kubectl, xpk, sbatch, squeue and scancel: records how it was called and answers from a list.

STAND_IN_FOLDER holds `calls.jsonl`, a line for each call, and `answers.json`, a list of [part of the command line,
[[output, exit code], ...]]: the first entry that fits answers, each time with its next output, the last one for good.
Its ssh and scp work on STAND_IN_FOLDER/home, as if that were the one worker.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> int:
    folder = Path(os.environ["STAND_IN_FOLDER"])
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    read_input = words[0] == "sbatch"
    call = {"argv": words} | ({"stdin": sys.stdin.read()} if read_input else {})
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(call) + "\n")

    answers = json.loads((folder / "answers.json").read_text())
    for part, outputs in answers:
        if part in " ".join(words):
            output, code = outputs[0]
            if len(outputs) > 1:
                outputs.pop(0)
                (folder / "answers.json").write_text(json.dumps(answers))
            print(output)
            return code

    if "ssh" in words:
        command = next(word for word in words if word.startswith("--command=")).removeprefix("--command=")
        return subprocess.run(["bash", "-c", command], env=os.environ | {"HOME": str(folder / "home")}).returncode
    if "scp" in words:
        (folder / "home").mkdir(exist_ok=True)
        shutil.copy(words[words.index("scp") + 1], folder / "home")
    return 0


sys.exit(main())
