"""What is asked of a benchmark, and what is wrong with a wish."""

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import Item
from jaxvlm.evaluation.benchmarks.registry import BENCHMARKS, find_benchmark
from jaxvlm.evaluation.task import SUM, by_image, choose, load_tasks
from tests.evaluation import colours

SPEC = "tests.evaluation.colours.Colours"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return colours.write_files(tmp_path_factory.mktemp("bench"))


def test_a_task_asks_in_its_dialect(root):
    (llava,) = load_tasks([SPEC], root)
    (official,) = load_tasks([f"{SPEC}:hidden"], root, dialect="official")
    assert (llava.name, official.name) == ("colours", "colours-hidden-official")
    assert (llava.max_new_tokens, official.max_new_tokens) == (6, 3)
    record = llava.record(llava.items[0], "yes")
    assert [(turn.role, turn.text) for turn in record.turns] == [
        ("user", "<image>\nis it red? one word"),
        ("assistant", "yes"),
    ]
    assert len({task.fingerprint for task in (llava, official)}) == 2
    assert llava.fingerprint == load_tasks([SPEC], root)[0].fingerprint


def test_all_that_is_wrong_comes_in_one_message(root, tmp_path):
    with pytest.raises(UserError) as caught:
        load_tasks(["gqo", f"{SPEC}:tset"], root)
    said = str(caught.value)
    assert 'is no benchmark (did you mean "gqa"?)' in said and 'no split "tset" (did you mean "test"?)' in said
    with pytest.raises(UserError, match='no dialect "lava"'):
        load_tasks([SPEC], root, dialect="lava")
    with pytest.raises(UserError, match="is missing; it comes from"):
        load_tasks([SPEC], tmp_path)
    with pytest.raises(UserError, match="no class of benchmarks|is not a class of benchmarks"):
        load_tasks(["tests.evaluation.colours.Path"], root)


class Needy(colours.Colours):
    packages = ("json", "no_such_package")


def test_a_missing_package_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"Colours needs the package no_such_package; .*\[evaluate\]"):
        load_tasks([f"{__name__}.Needy"], tmp_path)


class Mute(colours.Colours):
    name = "colours"

    def continuations(self, item, dialect):
        return () if item.groups["kind"] == "colour" else super().continuations(item, dialect)


def test_questions_without_choices_cannot_be_ranked(root):
    with pytest.raises(UserError, match=r"12 of 24 questions \(such as 0-what\) have no choices to rank"):
        load_tasks([f"{__name__}.Mute"], root, scoring=SUM)


def test_a_choice_takes_whole_clusters_and_grows():
    items = [Item(str(n), (f"{n % 10}.png",), "", "", cluster=str(n % 10)) for n in range(30)]
    small, large = choose(items, 9), choose(items, 20)
    assert len(small) == 9 and len(large) == 18
    assert {item.id for item in small} < {item.id for item in large}
    assert choose(items[::-1], 9) == small[::-1]
    assert len(choose(items, 1)) == 3 and choose(items, 0) == choose(items, 99) == items
    alone = [Item(str(n), (), "", "") for n in range(30)]
    assert len(choose(alone, 7)) == 7


def test_questions_of_one_image_are_neighbours():
    items = [Item(str(n), (f"{n % 3}.png",), "", "") for n in range(9)]
    assert [item.id for item in by_image(items)] == ["0", "3", "6", "1", "4", "7", "2", "5", "8"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_of_the_table_describes_itself(name):
    benchmark = find_benchmark(name)
    assert benchmark.name == name
    for text in (benchmark.title, benchmark.about, benchmark.files, benchmark.source, benchmark.metric):
        assert text and "\n\n" not in text
    assert benchmark.dialects and benchmark.splits and set(benchmark.max_new_tokens) <= {"", *benchmark.dialects}
    assert "" in benchmark.max_new_tokens or set(benchmark.max_new_tokens) == set(benchmark.dialects)
    for found in benchmark.published:
        assert found.dialect in benchmark.dialects and (not found.split or found.split in benchmark.splits)
