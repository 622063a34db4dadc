"""Training processes in a fraction of a second: each is forked from a server that has imported everything.

The server has not asked jax for devices, so that a child still chooses how many it has and joins other processes.
"""

import gc
import json
import os
import select
import signal
import sys


def serve() -> None:
    """Forks a child for each line of standard input and prints its id; see `report_ended` for its exit code."""
    # Here, because a worker process for data imports this module, and needs none of them.
    import jaxvlm.runs
    import jaxvlm.stages
    import jaxvlm.train  # noqa: F401

    gc.freeze()  # a child has no need to look for garbage among the modules
    gc.set_threshold(100_000, 20, 100)
    folder = sys.argv[1]
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 0.02)
        if ready:
            line = sys.stdin.readline()
            if not line:
                return
            child = os.fork()
            if not child:
                become(json.loads(line))
            print(child, flush=True)
        report_ended(folder)


def report_ended(folder: str) -> None:
    """Writes the exit code of each child that has ended to FOLDER/ID, atomically."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not child:
            return
        path = os.path.join(folder, str(child))
        with open(path + ".tmp", "w") as file:
            file.write(str(os.waitstatus_to_exitcode(status)))
        os.rename(path + ".tmp", path)


def become(job: dict) -> None:
    """Runs `job["code"]` and then the train command, unless the code exits; ends the process as Python would."""
    import jaxvlm.train
    from jaxvlm.command import run

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(job["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest was started in the background
    sys.argv = ["train", *job["arguments"]]
    exec(job["code"], {"__name__": "__child__", "job": job, "jaxvlm": jaxvlm, "os": os, "sys": sys})
    sys.exit(run(jaxvlm.train.main, job["arguments"]))


if __name__ == "__main__":
    serve()
