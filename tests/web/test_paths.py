"""No request names a file outside of what the command line gave."""

import os
import stat

import pytest

from jaxvlm.errors import UserError
from jaxvlm.web.paths import data_path, recipe_path, run_folder
from jaxvlm.web.problem import Problem
from jaxvlm.web.studio import Studio, read_token


@pytest.fixture
def studio(tmp_path):
    for run in ("root/one", "root/group/two", "root/一 <b>'\"", "root/.hidden", "elsewhere/three"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.json").write_text("{}")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text("")
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "secret.py").write_text("")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / "three")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root" / "loop")
    (tmp_path / "root" / "same").symlink_to(tmp_path / "root" / "one")
    (tmp_path / "root" / "empty").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path)
    (tmp_path / "recipes" / "link.py").symlink_to(tmp_path / "secret.py")
    return Studio(tmp_path / "root", tmp_path / "recipes", (tmp_path / "data",))


@pytest.mark.parametrize("run", ["one", "group/two", "一 <b>'\"", "same"])
def test_runs(studio, run):
    assert run_folder(studio, run) == studio.root / run


@pytest.mark.parametrize(
    "run",
    [
        *("", ".", "..", "../elsewhere/three", "one/..", "group/../one", "/one", "one/", "./one", "group", "empty"),
        *(
            ".hidden",
            "group/two/three",
            "link",
            "loop",
            "no",
            "one\0",
            "x" * 300,
            "x" * 5000,
            "~",
            "one\\..",
            ".studio",
        ),
    ],
)
def test_no_runs(studio, run):
    with pytest.raises(Problem) as found:
        run_folder(studio, run)
    assert found.value.status == 404 and found.value.code == "no_run"


def test_an_absolute_path_is_no_run(studio):
    with pytest.raises(Problem, match="there is no run"):
        run_folder(studio, str(studio.root / "one"))


def test_data(studio, tmp_path, monkeypatch):
    assert data_path(studio, str(tmp_path / "data" / "images")) == tmp_path / "data" / "images"
    assert data_path(studio, str(tmp_path / "root" / "one")) == tmp_path / "root" / "one"
    monkeypatch.chdir(tmp_path)
    assert data_path(studio, "data/images/..") == tmp_path / "data"
    read_token(studio.root)
    bad = ("", "/", "..", "data/../secret.py", "data/link/secret.py", "data/none", "/etc/passwd", "root/.studio/token")
    for text in (*bad, "a\0", "x" * 300, "root/loop", str(tmp_path / "data2")):
        with pytest.raises(Problem, match="not below a folder of --data") as found:
            data_path(studio, text)
        assert found.value.status == 404


def test_recipes(studio, tmp_path):
    assert recipe_path(studio, str(tmp_path / "recipes" / "mine.py")).name == "mine.py"
    assert recipe_path(studio, "configs/quickstart.py").name == "quickstart.py"
    for text in (tmp_path / "secret.py", tmp_path / "recipes" / "link.py", tmp_path / "data", tmp_path / "recipes"):
        with pytest.raises(Problem, match="recipe|--recipes"):
            recipe_path(studio, str(text))


def test_the_token(tmp_path):
    made = read_token(tmp_path)
    assert len(made) >= 43 and read_token(tmp_path) == made
    path = tmp_path / ".studio" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.chmod(path, 0o640)
    with pytest.raises(UserError, match="chmod 600"):
        read_token(tmp_path)
    path.write_text("short")
    os.chmod(path, 0o600)
    with pytest.raises(UserError, match="holds no token"):
        read_token(tmp_path)


def test_the_fields_of_a_problem():
    assert Problem(409, "run_exists", "It exists.", proposal="a-2").to_dict() == {
        "error": {"code": "run_exists", "message": "It exists.", "facts": {"proposal": "a-2"}}
    }
