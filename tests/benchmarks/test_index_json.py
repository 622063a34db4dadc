"""The benchmark runs and prints finite numbers; how large they are is no test's business."""

import math

from tests.benchmarks.index_json import FILES, main


def test_prints_finite_numbers(capsys):
    results = main(["--records", "200", "--rounds", "1", "--json"])
    assert list(results) == list(FILES)
    for result in results.values():
        assert all(math.isfinite(number) for number in [result["index"], result["ratio"], *result["peaks"]])
    assert "index peak" in capsys.readouterr().out
