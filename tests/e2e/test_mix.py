"""One run on three kinds of source: stopped, and gone on with other workers, it sees the same batches bit for bit."""

import hashlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvlm.command import load_config
from jaxvlm.data.recipe_tokenizer import build_tokenizer, saved_tokenizer
from jaxvlm.data.rows.ledger import FATES
from jaxvlm.data.rows.pipeline import build_pipeline
from jaxvlm.data.rows.prepare import prepare
from jaxvlm.data.sources.mix import Mix, load_mix
from jaxvlm.families.llava.layout import ImageSlots
from jaxvlm.runs import RunFolder
from tests.data.conftest import data_config
from tests.e2e.conftest import ROOT, write_data
from tests.e2e.small_run import finish
from tests.e2e.test_train import KILLED, losses

MIXED = str(ROOT / "tests/e2e/mixed.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset_info.json with a Parquet file whose images are bytes, and a folder of prepared records."""
    import datasets

    folder = tmp_path_factory.mktemp("mix")
    (folder / "raw").mkdir()
    write_data(folder / "raw", 30)
    rows = []
    for number in range(25):
        image = folder / "raw" / f"{number}_0.png"
        text = {"role": "user", "content": "<image>which color?" if number % 2 else "say a color"}
        turns = [text, {"role": "assistant", "content": f"number {number}"}]
        rows.append({"chat": turns, "pictures": [image.read_bytes()] if number % 2 else []})
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "chats.parquet"))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "chats.parquet", "formatting": "sharegpt", "tags": tags}
    entry["columns"] = {"messages": "chat", "images": "pictures"}
    (folder / "dataset_info.json").write_text(json.dumps({"chats": entry}))
    mix: Mix = load_mix(data_config(folder / "raw" / "data.json"))
    vision = load_config("configs/quickstart.py").model.vision
    prepare(mix, {}, ImageSlots.of(vision, "pad"), folder / "prepared", jpeg=0, shard_records=16, skip=False)
    return folder


def test_a_pipeline_continues_in_the_middle_on_two_hosts(folder, monkeypatch):
    """Every array of every batch, from the middle on; the ledger has the records of all three sources."""
    monkeypatch.setenv("JAXVLM_TEST_MIX", str(folder))
    config = load_config(MIXED)
    assert_continues(config, build_tokenizer(config))
    made = pipeline(config, build_tokenizer(config))
    ledger = made.ledger(12 * config.stage["finetune"].global_batch_size)
    assert_all_sources({"read": ledger.read} | {fate: {"total": ledger.total(fate)} for fate in FATES})


def pipeline(config, tokenizer, **options):
    stage = config.stage["finetune"]
    settings = {"layout": ImageSlots.of(config.model.vision, "pad"), "rows": stage.global_batch_size}
    return build_pipeline(stage.data, tokenizer, seed=config.seed, **settings, **options)


def assert_continues(config, tokenizer):
    def batches(first, **options):
        made = pipeline(config, tokenizer, **options).batches()
        made.set_state(made.get_state() | {"batch": first})
        try:
            return [jax.tree.map(np.copy, next(made)) for _ in range(first, 12)]
        finally:
            made.close()

    whole = batches(0)
    shares = [batches(5, process_index=host, process_count=2) for host in range(2)]
    for want, *parts in zip(whole[5:], *shares, strict=True):
        assert all(jax.tree.leaves(jax.tree.map(lambda w, *p: np.array_equal(w, np.concatenate(p)), want, *parts)))
    assert len({hashlib.blake2b(batch.tokens.tobytes()).hexdigest() for batch in whole}) == 12


def assert_all_sources(ledger):
    assert ledger["read"] == 60 + 25 + 30
    used = sum(ledger[fate]["total"] for fate in ("used", "packed", "truncated"))
    assert used + ledger["heldout"]["total"] + ledger["unreached"]["total"] == ledger["read"] and used > 60


@pytest.mark.nightly  # above without the training
def test_stopped_and_gone_on_with_other_workers(server, folder, tmp_path):
    def train(name, *arguments, **options):
        run = ("--config", MIXED, "--workdir", tmp_path / name)
        return server.fork(*run, *arguments, JAXVLM_TEST_MIX=str(folder), **options)

    finish(train("whole"))
    workers = "--config.stage.finetune.data.workers"
    code, log = train("stopped", f"{workers}=1", code=KILLED.replace("BATCH", "7")).wait()
    assert code == -9, log[-3000:]
    finish(train("stopped", f"{workers}=2", "--resume"))
    assert len(losses(tmp_path / "whole")) == 12
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")

    config = RunFolder(tmp_path / "whole").load_config()
    assert_continues(config, saved_tokenizer(tmp_path / "whole" / "tokenizer", config))
    assert_all_sources(json.loads((tmp_path / "whole" / "ledger.json").read_text())["finetune"])


def test_the_files_are_what_they_are_named(folder):
    mix = load_mix(data_config(f"{folder}/dataset_info.json:chats"))
    assert len(mix) == 25 and isinstance(mix[1].images[0], bytes) and mix[1].turns[0].text.startswith("<image>")
    with Image.open(folder / "raw" / "1_0.png") as image:
        assert image.size == (20, 24)
