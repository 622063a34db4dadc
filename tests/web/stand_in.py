"""A small process in the place of a training, and what tests ask of a studio that starts it."""

from tests.web.folders import client

# Ends with 75 on SIGTERM, as `train` does; counts its starts; a recipe that is called "deaf" ignores the signal, one
# called "fails" ends with a mistake, one called "beats" has a heartbeat, and one called "talks" has 10 MB to say.
STAND_IN = """
import json, os, pathlib, signal, sys, time
fields = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder, recipe = pathlib.Path(fields["--workdir"]), pathlib.Path(fields["--config"]).stem
if recipe == "fails":
    sys.exit("error: a mistake")
def end(*_):
    (folder / "exit.json").write_text(json.dumps({"code": 75, "signal": None, "time": 1}))
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if recipe == "deaf" else end)
with open(folder / "starts", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "|" + os.environ.get("CUDA_VISIBLE_DEVICES", "all") + "\\n")
while not (folder / "finish").exists():
    if recipe == "beats":
        beat = {"process": 0, "host": os.uname().nodename, "pid": os.getpid(), "stage": "align", "step": 3, "steps": 9}
        (folder / "heartbeats").mkdir(exist_ok=True)
        (folder / "new").write_text(json.dumps({**beat, "phase": "step", "phase_seconds": 1, "time": time.time()}))
        (folder / "new").replace(folder / "heartbeats" / "0.json")
    time.sleep(0.01 if recipe != "beats" else 0.2)
if recipe == "talks":
    for _ in range(160):
        sys.stdout.write("x" * 65535 + "\\n")
    print("the last word")
"""


def start(studio, name="run", recipe="mine", **fields):
    path = recipe and str(studio.recipes / f"{recipe}.py")
    return ask(studio, "runs/start", **({"recipe": path, "name": name, "when": "now", "share": True} | fields))


def ask(studio, path, **body):
    return client(studio).post(f"/api/{path}", json=body)


def starts(studio, name="run"):
    path = studio.root / name / "starts"
    return path.read_text().splitlines() if path.exists() else []


def state(studio, name="run"):
    return client(studio).get("/api/run", params={"run": name}).json()["state"]


def error(reply):
    return reply.status_code, reply.json()["error"]["code"]


def queue(studio):
    """The runs that wait, in order."""
    return [item["run"] for item in client(studio).get("/api/queue").json()["items"]]
