"""ChartQA: halves, prompts, white space."""

from jaxvlm.evaluation.benchmarks.chartqa import ChartQa
from tests.evaluation import layouts

BENCHMARK = ChartQa()


def test_halves_and_prompts(tmp_path):
    layouts.chartqa_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "test")
    assert [item.id for item in items] == ["human_test-0", "human_test-1", "augmented_test-0"]
    assert BENCHMARK.prompt(items[0], "lmms_eval") == "<image>\nHow many bars?\nAnswer the question with a single word."
    assert BENCHMARK.prompt(items[0], "vlmevalkit") == f"<image>\nHow many bars?\n{layouts.SHORT}"
    values = [BENCHMARK.parse(item, text, "lmms_eval") for item, text in zip(items, ["3.1", "no", "14"], strict=True)]
    scores = BENCHMARK.score(items, values, "lmms_eval")
    assert scores.credits.tolist() == [1, 0, 0] and scores.groups == {"half": {"augmented": 0, "human": 50}}


def test_white_space_round_an_answer_is_wrong_for_lmms_eval_alone(tmp_path):
    layouts.chartqa_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "test")
    for dialect, credits in [("lmms_eval", [1, 0, 0]), ("vlmevalkit", [1, 1, 1])]:
        values = [
            BENCHMARK.parse(item, f" {text}\n", dialect)
            for item, text in zip(items, ["3", "yes", "14.5%"], strict=True)
        ]
        assert BENCHMARK.score(items, values, dialect).credits.tolist() == credits
