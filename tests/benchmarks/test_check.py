"""The benchmark runs on few records, and goes through them twice."""

import pytest

from tests.benchmarks import check


@pytest.mark.nightly
def test_measures_two_checks(monkeypatch, capsys):
    monkeypatch.setattr(check, "IMAGES", 20)
    result = check.main(["--records", "665"])
    printed = capsys.readouterr().out
    for turn in ("first", "second"):
        assert result[turn]["seconds"] > 0 and result[turn]["peak_bytes"] > 2**20
        assert f"{result[turn]['seconds']:.1f}" in printed
