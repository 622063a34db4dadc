"""Starting, stopping, ending and resuming runs, with small processes in the place of trainings."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import configs.quickstart
from jaxvlm.process_identity import is_alive
from jaxvlm.web import control, train_command
from jaxvlm.web.control import check_recipe, free_name
from jaxvlm.web.problem import Problem
from jaxvlm.web.run_detail import detail
from jaxvlm.web.run_state import read_run
from tests.web.folders import GONE, client, make_run, own, write
from tests.web.stand_in import ask, error, start, starts, state
from tests.web.waiting import wait_for

QUICKSTART = configs.quickstart.__file__


def test_start_stop_resume_finish(studio):
    assert start(studio).json() == {"run": "run"}
    wait_for(lambda: starts(studio))
    found = detail(studio, "run")
    assert found["state"] == "starting" and found["launched_by_studio"] and found["recipe_changed"] is False
    assert found["can"] == {"stop": True, "kill": True, "resume": False, "delete": False} and found["stopping"] is None
    assert found["recipe"] == str(studio.recipes / "mine.py") and "--workdir" in found["command_text"]
    assert error(ask(studio, "run/resume", run="run")) == (409, "not_ended")

    assert ask(studio, "run/stop", run="run").json()["pid"] == read_run(studio.root / "run").child["pid"]
    wait_for(lambda: state(studio) == "paused" and detail(studio, "run")["can"]["resume"])
    assert json.loads((studio.root / "run" / "exit.json").read_text())["time"] == 1  # the child's own
    assert error(ask(studio, "run/stop", run="run")) == (409, "not_running")
    assert error(ask(studio, "run/kill", run="run", confirmed=True)) == (409, "not_running")

    write(studio.recipes / "mine.py", "# another\n")
    assert detail(studio, "run")["recipe_changed"] is True
    assert ask(studio, "run/resume", run="run").status_code == 200
    wait_for(lambda: len(starts(studio)) == 2)
    first, second = (line.partition("|")[0].split() for line in starts(studio))
    assert second == [*first, "--resume-or-start"] and state(studio) == "starting"
    write(studio.root / "run" / "finish", "")
    wait_for(lambda: state(studio) == "done" and detail(studio, "run")["can"]["resume"])
    assert ask(studio, "run/resume", run="run").status_code == 200  # train finds that nothing is left to do
    wait_for(lambda: len(starts(studio)) == 3 and state(studio) == "done")
    assert starts(studio)[2] == starts(studio)[1]


def test_a_stop_is_on_record(studio):
    start(studio, recipe="deaf")
    wait_for(lambda: starts(studio))
    pid = ask(studio, "run/stop", run="run").json()["pid"]
    found = detail(studio, "run")
    assert found["stopping"]["pid"] == pid and abs(found["stopping"]["time"] - time.time()) < 60
    assert found["state"] == "starting"  # it ignores the signal


def test_kill(studio):
    start(studio, recipe="deaf")
    wait_for(lambda: starts(studio))
    refused = ask(studio, "run/kill", run="run")
    assert error(refused) == (409, "not_confirmed")
    assert refused.json()["error"]["facts"] == {"steps": 0, "checkpoint_step": 0, "seconds": None}
    assert state(studio) == "starting"
    reply = ask(studio, "run/kill", run="run", confirmed=True).json()
    assert reply["gone"] is True
    wait_for(lambda: state(studio) == "killed")
    assert json.loads((studio.root / "run" / "exit.json").read_text())["signal"] == 9


def test_a_killed_child_is_killed_and_not_lost(studio):
    """kill -9, as the kernel does when memory is short."""
    start(studio)
    wait_for(lambda: starts(studio))
    os.kill(read_run(studio.root / "run").child["pid"], signal.SIGKILL)
    wait_for(lambda: state(studio) == "killed")
    assert detail(studio, "run")["error"]["advice"] == "killed_by_system"


def test_a_mistake_shows_its_line(studio):
    start(studio, recipe="fails")
    wait_for(lambda: state(studio) == "crashed")  # sys.exit(text) is 1
    assert detail(studio, "run")["error"]["line"] == "a mistake"


def test_a_reused_pid_gets_no_signal(studio):
    """The process on record has ended, and this one has its number."""
    for key, value in {"start_ticks": "1", "boot_id": "other", "host": "other"}.items():
        other = own() | {key: value}
        make_run(studio.root, key, process=other, studio={"launcher": other | {"pgid": other["pid"], "child": other}})
        for path in ("run/stop", "run/kill"):
            assert error(ask(studio, path, run=key, confirmed=True)) == (409, "not_running")


def test_the_process_group_of_another_is_not_killed(studio):
    """A launcher on record whose group is not that of its child."""
    child = own()
    make_run(studio.root, studio={"launcher": GONE | {"pgid": os.getpgrp() + 1, "child": child}})
    assert control._group(read_run(studio.root / "run")) is None
    assert error(ask(studio, "run/stop", run="run")) == (409, "not_running")  # this process is no run's


# --- names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/b/c",
        "a//b",
        ".hidden",
        "a\nb",
        "a\0",
        " a",
        "a ",
        "a\\b",
        "x" * 101,
        "a/../b",
        "a/.b",
    ],
)
def test_names_that_are_none(studio, name):
    assert error(start(studio, name)) == (422, "bad_name")
    assert list(studio.root.iterdir()) == []


@pytest.mark.parametrize("name", ["实验 'a' <b>", "group/run", "-rf", "x" * 100])
def test_names(studio, name):
    assert start(studio, name).json() == {"run": name}
    wait_for(lambda: starts(studio, name))


def test_nothing_is_overwritten(studio):
    make_run(studio.root, "run")
    make_run(studio.root, "run-2")
    write(studio.root / "file", "")
    reply = start(studio)
    assert error(reply) == (409, "run_exists") and reply.json()["error"]["facts"]["proposal"] == "run-3"
    assert start(studio, "file").json()["error"]["facts"]["proposal"] == "file-2"
    assert [free_name(studio, name) for name in ("new", "run-2", "group/run")] == ["new", "run-3", "group/run"]
    assert {path.name for path in (studio.root / "run").iterdir()} == {"config.json"}


def test_a_group_that_leads_outside(studio, tmp_path):
    (tmp_path / "outside").mkdir()
    (studio.root / "link").symlink_to(tmp_path / "outside")
    assert error(start(studio, "link/run")) == (422, "bad_name") and list((tmp_path / "outside").iterdir()) == []


# --- a full disk


def fill_disk(monkeypatch, *, after=0):
    """Writes fail from now on, but for the first few."""
    written, write_text = [], control.replace_text

    def fail(path, text):
        written.append(path)
        if len(written) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_text(path, text)

    monkeypatch.setattr(control, "replace_text", fail)


@pytest.mark.parametrize("after", [0, 1])
def test_a_start_on_a_full_disk_leaves_nothing(studio, monkeypatch, after):
    """Neither a folder, nor a process that nobody could find again; the name is free for the next try."""
    launched, launch = [], control.launch
    monkeypatch.setattr(control, "launch", lambda *given: launched.append(launch(*given)) or launched[-1])
    with monkeypatch.context() as disk:
        fill_disk(disk, after=after)
        reply = start(studio)
    assert error(reply) == (507, "disk") and str(studio.root / "run" / "studio.json") in reply.text
    assert not (studio.root / "run").exists() and len(launched) == after
    assert not any(is_alive(process) for one in launched for process in (one, one["child"]))
    assert start(studio).status_code == 200


def test_a_queue_on_a_full_disk(studio, monkeypatch):
    write(studio.root / ".studio" / "queue", "a file where the folder should be")
    assert start(studio, when="queue").status_code in (500, 507) and not (studio.root / "run").exists()


def test_a_stop_on_a_full_disk(studio, monkeypatch):
    start(studio)
    wait_for(lambda: starts(studio))
    fill_disk(monkeypatch)
    assert ask(studio, "run/stop", run="run").status_code == 200
    wait_for(lambda: state(studio) == "paused")


# --- recipes


def test_recipes_from_elsewhere_are_not_run(studio, tmp_path):
    write(tmp_path / "evil.py", "raise SystemExit")
    for recipe in (str(tmp_path / "evil.py"), "/etc/passwd", str(studio.recipes), "none.py"):
        body = {"recipe": recipe, "name": "run", "when": "now"}
        assert error(ask(studio, "runs/start", **body)) == (404, "no_recipe")


def test_a_recipe_is_read_in_a_process_of_its_own(tmp_path):
    check_recipe(Path(QUICKSTART), "align")
    for text, stage, message in [
        ("import os\ndef get_config(): return os._exit(5)", None, "it ended without a word"),
        (Path(QUICKSTART).read_text(), "no", "--stage no"),
    ]:
        write(tmp_path / "recipe.py", text)
        with pytest.raises(Problem, match=message) as found:
            check_recipe(tmp_path / "recipe.py", stage)
        assert found.value.code == "bad_recipe"


@pytest.mark.parametrize(
    "fields",
    [
        {"when": "later"},
        {"recipe": None},
        {"name": 5},
        {"stage": []},
        {"devices": "0"},
        {"share": 1},
        {"extra": "--x", "name": None},
    ],
)
def test_fields_of_a_start(studio, fields):
    assert error(start(studio, **fields)) == (422, "bad_field")


# --- commands of other origin


def resume_of(studio, command, **process):
    folder = make_run(studio.root, f"run{len(list(studio.root.iterdir()))}", exit={"code": 75})
    write(folder / "process.json", GONE | {"command": command, "cwd": os.getcwd()} | process)
    return train_command.resume_command(studio, read_run(folder))


TRAIN = ["/other/python", "-m", "jaxvlm.train"]


def test_a_run_of_the_command_line_is_resumed_with_its_fields(studio):
    given = [
        "--config",
        QUICKSTART,
        "--config.steps=5",
        "--config.stage.align.epochs",
        "2",
        "--workdir",
        "/x",
        "--stage=align",
    ]
    for words in (TRAIN, ["python", "/bin/jaxvlm", "train"], ["python", "/x/jaxvlm/train.py"]):
        command, problem = resume_of(studio, [*words, *given, "--resume"])
        assert problem is None
        folder = command[command.index("--workdir") + 1]
        assert command == [
            *(sys.executable, "-m", "jaxvlm.train", "--config", QUICKSTART, "--workdir", folder, "--stage", "align"),
            *("--config.steps=5", "--config.stage.align.epochs=2", "--resume-or-start"),
        ]
        assert folder.startswith(str(studio.root))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["/bin/sh", "-c", "rm -rf /"], "no_command"),
        ([*TRAIN], "no_command"),
        ([*TRAIN, "--config", "/tmp/evil.py"], "resume_by_hand"),
        ([*TRAIN, "--config", QUICKSTART, "--num-processes", "2"], "resume_by_hand"),
        ([*TRAIN, "--config", QUICKSTART, "; rm -rf /"], "resume_by_hand"),
        ("a text", "no_command"),
        ([*TRAIN, 5], "no_command"),
        (None, "no_command"),
    ],
)
def test_commands_that_are_not_run(studio, command, code):
    _, problem = resume_of(studio, command)
    assert problem.code == code
    name = next(path.name for path in studio.root.iterdir())
    assert error(ask(studio, "run/resume", run=name)) == (409, code)
    found = detail(studio, name)
    assert found["can"]["resume"] is False and found["resume_problem"]["code"] == code


def test_a_relative_recipe_of_another_folder(studio):
    command = [*TRAIN, "--config", "configs/quickstart.py"]
    _, problem = resume_of(studio, command, cwd="/somewhere")
    assert problem.code == "resume_by_hand" and "/somewhere" in problem.message


# --- tasks


def test_tasks(studio):
    task = studio.tasks.start("plan", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], {"recipe": "r"})
    assert client(studio).get("/api/task", params={"id": task}).json()["state"] == "running"
    assert [entry["id"] for entry in client(studio).get("/api/tasks").json()["tasks"]] == [task]
    assert ask(studio, "task/cancel", id=task).status_code == 200
    wait_for(lambda: client(studio).get("/api/task", params={"id": task}).json()["state"] == "cancelled")
    assert error(ask(studio, "task/cancel", id=task)) == (409, "task_ended")
    assert error(ask(studio, "task/cancel", id="../x")) == (404, "no_task")
