"""The launcher and tasks, with small children in Python: output in files, ends in files, no child left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxvlm.process_identity import identity, is_alive
from jaxvlm.web.launcher import launch, passed_environment, shown_environment
from jaxvlm.web.problem import Problem
from jaxvlm.web.tasks import Tasks, progress_of
from tests.web.waiting import wait_for


def python(code):
    return [sys.executable, "-S", "-c", code]


def start(folder, code, **options):
    return launch(python(code), folder, folder / "log", folder / "exit.json", {}, **options)


def exists(pid):
    try:
        return is_alive(identity(pid))
    except ProcessLookupError:
        return False


def exit_of(folder):
    wait_for((folder / "exit.json").exists)
    return json.loads((folder / "exit.json").read_text())


def test_the_end_is_in_a_file(tmp_path):
    launcher = start(tmp_path, "import os, sys; print('out', os.getcwd()); sys.stderr.write('err'); sys.exit(3)")
    found = exit_of(tmp_path)
    assert found.keys() == {"code", "signal", "time"} and found["code"] == 3 and found["signal"] is None
    assert (tmp_path / "log").read_text().split() == ["out", str(tmp_path), "err"]
    assert launcher["pgid"] == launcher["child"]["pid"] != launcher["pid"]
    wait_for(lambda: not is_alive(launcher))


def test_the_output_is_never_a_pipe(tmp_path):
    """More than a pipe takes, and nobody reads: the child ends."""
    start(tmp_path, "import sys\nfor _ in range(160): sys.stdout.write('x' * 65536)")
    assert exit_of(tmp_path)["code"] == 0 and (tmp_path / "log").stat().st_size == 160 * 65536


def test_a_signal_is_the_end(tmp_path):
    launcher = start(tmp_path, "import time; time.sleep(60)")
    os.kill(launcher["child"]["pid"], signal.SIGKILL)
    assert exit_of(tmp_path) | {"time": 0} == {"code": None, "signal": 9, "time": 0}


def test_an_old_end_is_removed(tmp_path):
    (tmp_path / "exit.json").write_text('{"code": 75}')
    launcher = start(tmp_path, "import time; time.sleep(60)")
    assert not (tmp_path / "exit.json").exists()
    os.kill(launcher["pgid"], signal.SIGTERM)
    assert exit_of(tmp_path)["signal"] == 15


def test_what_the_command_wrote_itself_stays(tmp_path):
    text = '{"code": 75, "signal": null, "time": 1}'
    start(tmp_path, f"open({str(tmp_path / 'exit.json')!r}, 'w').write({text!r}); raise SystemExit(75)")
    wait_for((tmp_path / "exit.json").exists)
    assert exit_of(tmp_path)["time"] == 1


def test_a_folder_that_is_removed(tmp_path):
    """Nobody is left who waits to write into it."""
    (tmp_path / "run").mkdir()
    launcher = start(tmp_path / "run", "import time; time.sleep(60)")
    shutil.rmtree(tmp_path / "run")
    os.kill(launcher["pgid"], signal.SIGKILL)
    wait_for(lambda: not is_alive(launcher))


def test_workers_end_with_the_command(tmp_path):
    code = (
        "import subprocess, sys\n"
        "worker = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'worker')!r}, 'w').write(str(worker.pid))"
    )
    start(tmp_path, code)
    exit_of(tmp_path)
    worker = int((tmp_path / "worker").read_text())
    wait_for(lambda: not exists(worker))


def test_it_outlives_who_started_it(tmp_path):
    """As after kill -9 of the server, with all its session."""
    code = (
        "import sys, time; from pathlib import Path; from jaxvlm.web.launcher import launch\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"launch({python('import time; time.sleep(0.5)')!r}, folder, folder / 'log', folder / 'exit.json', {{}})\n"
        "print('started', flush=True); time.sleep(60)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert server.stdout.readline() == "started\n"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()
    assert exit_of(tmp_path)["code"] == 0


def test_no_such_program(tmp_path):
    with pytest.raises(Problem, match="No such file"):
        launch(["/nowhere/python"], tmp_path, tmp_path / "log", tmp_path / "exit.json", {})


def test_the_environment_is_a_list():
    given = {"PATH": "p", "HF_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "https_proxy": "h", "JAXVLM_API_KEY": "k"}
    assert passed_environment(given).keys() == {"PATH", "HF_TOKEN", "https_proxy"}
    shown = shown_environment(given)
    assert {name for name, value in shown.items() if value == "***"} == {
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "JAXVLM_API_KEY",
    }


# --- tasks


def test_a_task_from_start_to_end(tmp_path):
    tasks = Tasks(tmp_path)
    assert tasks.list() == []
    code = "import sys; print(open(sys.argv[1] + '/task.json').read()[:1]); print('a', 'b')"
    task = tasks.start("plan", lambda folder: [*python(code), str(folder)], {"recipe": "r"})
    wait_for(lambda: tasks.get(task)["state"] != "running")
    found = tasks.get(task)
    assert found["state"] == "done" and found["code"] == 0 and found["kind"] == "plan"
    assert found["about"] == {"recipe": "r"} and found["ended"] >= found["started"] and found["progress"] is None
    assert found["log_tail"] == "{\na b" and [entry["id"] for entry in tasks.list()] == [task]
    with pytest.raises(Problem, match="has ended already"):
        tasks.cancel(task)
    assert tasks.get(task)["state"] == "done"


def test_a_task_fails(tmp_path):
    tasks = Tasks(tmp_path)
    task = tasks.start("plan", python("raise SystemExit(2)"), {})
    wait_for(lambda: tasks.get(task)["state"] != "running")
    assert tasks.get(task)["state"] == "failed" and tasks.get(task)["code"] == 2


def test_a_start_on_a_full_disk_leaves_nothing(tmp_path):
    tasks = Tasks(tmp_path)

    def command(folder):
        (folder / f".task.json.{os.getpid()}").symlink_to("/dev/full")  # of the file that `start` writes next
        return python("")

    with pytest.raises(OSError, match="No space left"):
        tasks.start("plan", command, {})
    assert [*(tmp_path / ".studio" / "tasks").iterdir()] == [] and not tasks.list()


def test_cancel_reaches_a_command_that_ignores_it(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvlm.web.tasks._GRACE_SECONDS", 0.2)
    tasks = Tasks(tmp_path)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready'); time.sleep(60)"
    task = tasks.start("plan", python(code), {})
    wait_for(lambda: tasks.get(task)["log_tail"] == "ready")
    tasks.cancel(task)
    wait_for(lambda: tasks.get(task)["state"] != "running")
    assert tasks.get(task)["state"] == "cancelled" and tasks.get(task)["code"] is None


def test_another_tasks_object_finds_it(tmp_path):
    task = Tasks(tmp_path).start("plan", python("import time; time.sleep(60)"), {})
    after_restart = Tasks(tmp_path)
    assert after_restart.get(task)["state"] == "running"
    after_restart.cancel(task)
    wait_for(lambda: after_restart.get(task)["state"] == "cancelled")


def test_a_launcher_that_is_gone(tmp_path):
    tasks = Tasks(tmp_path)
    task = tasks.start("plan", python("import time; time.sleep(60)"), {})
    launcher = json.loads((tasks.folder(task) / "task.json").read_text())["launcher"]
    os.kill(launcher["pid"], signal.SIGKILL)
    wait_for(lambda: tasks.get(task)["state"] == "failed")
    os.kill(launcher["pgid"], signal.SIGKILL)


@pytest.mark.parametrize("task", ["", "plan", "../plan-20260101-000000-00000000", "plan-20260101-000000-00000000"])
def test_no_such_task(tmp_path, task):
    with pytest.raises(Problem, match="there is no task"):
        Tasks(tmp_path).get(task)


def test_secrets_stay_out_of_files(tmp_path):
    tasks = Tasks(tmp_path)
    code = "import os; raise SystemExit(len(os.environ['JAXVLM_API_KEY']) != 6)"
    task = tasks.start("serve", python(code), {}, {"JAXVLM_API_KEY": "s3cret"})
    wait_for(lambda: tasks.get(task)["state"] == "done")
    assert not [path for path in tasks.folder(task).iterdir() if "s3cret" in path.read_text()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("step 3/4", None),
        ("a 10%|#   | 1/10 [00:01<00:09]\rread:  42%|████▏     | 21/50 [00:01<00:02, 20.1it/s]", (21, 50, "read")),
        (" 42%|####      | 21.5k/50.0k [00:01<00:02]", (21500, 50000, "")),
        ("first\nlook at files: 100%|##| 665,298/665,298 [00:01<00:00]\nlast", (665298, 665298, "look at files")),
    ],
)
def test_progress_bars(text, expected):
    assert progress_of(text) == (expected and dict(zip(("n", "total", "text"), expected, strict=True)))


def test_an_entry_without_launcher_counts_for_a_minute(tmp_path):
    """The server may be killed between the folder and the launcher."""
    folder = tmp_path / ".studio" / "tasks" / "plan-20260101-000000-00000000"
    folder.mkdir(parents=True)
    for age, state in ((0, "running"), (61, "failed")):
        (folder / "task.json").write_text(json.dumps({"kind": "plan", "started": time.time() - age, "launcher": None}))
        assert Tasks(tmp_path).get(folder.name)["state"] == state
