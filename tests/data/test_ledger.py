"""The account of all records."""

import json

import pytest

from jaxvlm.data.rows.ledger import FATES, WHOLE, Ledger
from jaxvlm.errors import UserError

ENTRIES = [("used", WHOLE)] * 3 + [("rejected", "image_missing"), ("rejected", "roles"), ("rejected", "roles")]


def test_counts_add_up():
    ledger = Ledger.of(ENTRIES)
    assert ledger.read == len(ENTRIES) == sum(ledger.total(fate) for fate in FATES)
    assert ledger.counts["rejected"] == {"image_missing": 1, "roles": 2}
    assert ledger.total("packed") == 0


def test_saved_and_loaded(tmp_path):
    ledger = Ledger.of(ENTRIES)
    ledger.save(tmp_path / "ledger.json")
    assert Ledger.load(tmp_path / "ledger.json") == ledger
    assert json.loads((tmp_path / "ledger.json").read_text())["rejected"] == {
        "total": 3,
        "reasons": {"image_missing": 1, "roles": 2},
    }


@pytest.mark.parametrize("change", [{"read": 7}, {"packed": {"total": 1, "reasons": {}}}, {"used": None}])
def test_counts_that_do_not_add_up_are_refused(tmp_path, change):
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps(Ledger.of(ENTRIES).to_dict() | change))
    with pytest.raises(UserError, match="is not a ledger"):
        Ledger.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="is not a ledger"):
        Ledger.load(tmp_path / "ledger.json")


def test_table():
    assert Ledger.of(ENTRIES).table().splitlines() == [
        "records read               6",
        "  used                     3",
        "  packed                   0",
        "  truncated                0",
        "  rejected                 3",
        "    image_missing          1",
        "    roles                  2",
        "  heldout                  0",
        "  unreached                0",
    ]


def test_unknown_fate():
    with pytest.raises(ValueError, match="found lost"):
        Ledger.of([("lost", "")])
