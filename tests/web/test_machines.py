"""Launch pages with settings filled in: the same pages, quoted, and what they would run."""

import subprocess

import pytest

from jaxvlm.planning.slices import known_slices
from jaxvlm.web.machines import MACHINES, SettingsError, accelerator_type, launch_folder, read_settings, write_page
from tests.web.studio_client import make_client

HOSTILE = ["a b", "$(touch hacked)", "`touch hacked`", "a'b\"c", "x; touch hacked", "-flag", "大", "a\\b", "#x", ""]


@pytest.fixture
def client(tmp_path):
    return make_client(tmp_path)


def text_of(machine):
    return (launch_folder() / MACHINES[machine].page).read_text()


def value_in_bash(page, name):
    """What bash reads as a setting of a page."""
    block = page.split("# --- settings\n")[1].split("# --- end of settings")[0]
    done = subprocess.run(["bash", "-c", f'{block}\nprintf %s "${name}"'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_every_line_of_the_settings_is_read(machine):
    page = text_of(machine)
    block = page.split("# --- settings\n")[1].split("# --- end of settings")[0]
    assert len(read_settings(page)) == len(block.splitlines()) > 5
    assert all(setting.help for setting in read_settings(page))
    assert write_page(page, {}) == page


@pytest.mark.parametrize("value", HOSTILE)
def test_values_are_quoted(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = write_page(text_of("slurm"), {"RECIPE": value, "NODES": "2"})
    assert value_in_bash(page, "RECIPE") == value and value_in_bash(page, "NODES") == "2"
    assert value_in_bash(page, "TIME") == "24:00:00" and not list(tmp_path.iterdir())
    assert page.count("\n") == text_of("slurm").count("\n")


def test_unknown_settings_and_control_characters():
    with pytest.raises(SettingsError) as error:
        write_page(text_of("slurm"), {"NODE": "1", "RECIPE": "a\nb"})
    assert [name for name, _ in error.value.problems] == ["NODE", "RECIPE"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e-16", ("v5litepod-16", 1)),
        ("2xv5e-64", ("v5litepod-64", 2)),
        ("v5p-8", ("v5p-8", 1)),
        ("v6e-8", ("v6e-8", 1)),
    ],
)
def test_slices_by_googles_names(name, expected):
    assert accelerator_type(name) == expected


def test_every_slice_has_such_a_name():
    assert all(accelerator_type(name)[1] == 1 for name in known_slices())


def test_the_dry_run_is_that_of_the_page(client, tmp_path):
    """The text that is handed out, run where the pages are, prints what the studio showed."""
    settings = {"NODES": "3", "RECIPE": "my 'recipe'.py", "WORKDIR": "runs/大"}
    found = client.post("launch/page", {"machine": "slurm", "settings": settings})
    assert "#SBATCH --nodes=3" in found["dry_run"] and found["settings"] == settings
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "common.sh").symlink_to(launch_folder() / "common.sh")
    page = tmp_path / "launch" / found["name"]
    page.write_text(found["text"])
    done = subprocess.run(["bash", str(page), "write", "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == found["dry_run"].partition("\n")[2]


def test_a_page_of_a_saved_recipe(client):
    found = client.post("launch/page", {"machine": "tpu_vm", "name": "My_run", "settings": {"SLICE": "2xv5e-16"}})
    assert value_in_bash(found["text"], "ACCELERATOR_TYPE") == "v5litepod-16"
    assert value_in_bash(found["text"], "SLICES") == "2" and value_in_bash(found["text"], "NAME") == "my-run"
    assert value_in_bash(found["text"], "RECIPE") == str(client.studio.recipes / "My_run.py")
    assert "--project" in found["dry_run"] and "exit code 2" in found["dry_run"], "the page says what is missing"


def test_what_is_refused(client):
    assert client.post("launch/page", {"machine": "cloud"}, 404)["code"] == "no_machine"
    bad = {"machine": "slurm", "settings": {"NO": "1", "NODES": "a\0"}}
    assert len(client.post("launch/page", bad, 422)["facts"]["problems"]) == 2
    assert client.post("launch/page", {"machine": "slurm", "settings": {"NODES": 1}}, 422)["code"] == "bad_settings"
    assert client.post("launch/page", {"machine": "gke", "settings": {"SLICE": "v9-1"}}, 422)["code"] == "no_slice"


def test_the_list(client):
    found = {machine["id"]: machine for machine in client.get("machines")}
    assert list(found) == ["here", "tpu_vm", "gke", "slurm"]
    assert {"name": "NODES", "default": "1", "help": "nodes"} in found["slurm"]["settings"]
    assert "v5e-16" in found["gke"]["slices"] and found["slurm"]["slices"] == []
