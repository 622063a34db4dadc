import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxvlm.__main__ import COMMANDS, main
from jaxvlm.command import Parser, run
from jaxvlm.errors import UserError


def jaxvlm(*arguments):
    return subprocess.run([sys.executable, "-m", "jaxvlm", *arguments], capture_output=True, text=True, timeout=300)


def test_the_dispatcher_lists_its_commands():
    shown = jaxvlm("--help")
    assert shown.returncode == 0 and all(name in shown.stdout for name in COMMANDS)
    assert jaxvlm("trian").returncode == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_example(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxvlm", name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert f"  python -m jaxvlm.{name} " in shown and "--json" in shown


def fail(argv):
    raise UserError("tokens = 3 is too few; set tokens to 4")


def test_a_users_mistake_is_one_line(capsys):
    assert run(fail, []) == 2
    assert capsys.readouterr().err == "error: tokens = 3 is too few; set tokens to 4\n"


def allocate(argv):
    jnp.zeros(2**46, jnp.uint8)


def test_a_device_that_is_too_small_is_one_line(capsys):
    assert run(allocate, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a device has too little memory (RESOURCE_EXHAUSTED: ") and said.count("\n") == 1
    assert "70368744177664 bytes" in said and "micro_batches" in said and "jaxvlm.plan" in said


def fill(argv):
    with open("/dev/full", "w") as file:
        file.write("more")


def test_a_full_disk_is_one_line(capsys):
    assert run(fill, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: [Errno 28] No space left on device; free some space") and said.count("\n") == 1


@pytest.mark.parametrize(("main", "error"), [(fail, UserError), (allocate, jax.errors.JaxRuntimeError)])
def test_debug_shows_the_traceback(main, error):
    with pytest.raises(error):
        run(main, ["--debug"])


def test_a_path_that_is_a_file_is_one_line(capsys, tmp_path):
    (tmp_path / "a").write_text("")
    assert run(lambda argv: list((tmp_path / "a").iterdir()), []) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/a: Not a directory; choose another path, or remove what is there\n"
    )
    assert run(lambda argv: (tmp_path / "a").mkdir(exist_ok=True), []) == 2
    assert (
        capsys.readouterr().err == f"error: {tmp_path}/a: File exists; choose another path, or remove what is there\n"
    )


def test_other_failures_keep_their_traceback():
    with pytest.raises(jax.errors.JaxRuntimeError, match="divided"):
        run(lambda argv: raise_(jax.errors.JaxRuntimeError("INTERNAL: divided by zero")), [])


def raise_(error):
    raise error


def test_json_is_the_last_line(capsys):
    assert run(lambda argv: {"count": 3}, ["--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"count": 3}
    assert run(lambda argv: {"count": 3}, []) == 0
    assert capsys.readouterr().out == ""


def test_unknown_arguments_are_named():
    parser = Parser("train", "doc")
    parser.add_config()
    args, overrides = parser.parse_with_overrides(["--config", "a.py", "--config.seed=3", "--config.steps", "5"])
    assert args.config == "a.py" and overrides == ["--config.seed=3", "--config.steps", "5"]
    with pytest.raises(UserError, match="unknown arguments: --stpes 5"):
        parser.parse_with_overrides(["--config", "a.py", "--stpes", "5"])
    with pytest.raises(UserError, match="--config.*python -m jaxvlm.train --help"):
        parser.parse_with_overrides([])
