"""Several sources as one: each with its weight and limit, the same for every host, and exact in resume."""

import dataclasses
import json
import pickle
from collections import Counter

import numpy as np
import pytest

from jaxvlm.config import MediaConfig, MixConfig
from jaxvlm.config_reading import build_config
from jaxvlm.data.sources.mix import load_mix
from jaxvlm.errors import UserError
from jaxvlm.families.llava.config import LlavaMedia
from tests.data.conftest import conversation, data_config
from tests.data.test_pipeline import VISION, same, take
from tests.layouts import make_pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files: 40 records that say "red" and 24 that say "blue"."""
    paths = []
    for word, count in (("red", 40), ("blue", 24)):
        folder = tmp_path_factory.mktemp(word)
        lines = [
            json.dumps({"id": f"{word}-{i}", "conversations": conversation("what is", f"{word} circle " * (1 + i % 3))})
            for i in range(count)
        ]
        (folder / f"{word}.jsonl").write_text("\n".join(lines))
        paths.append(str(folder / f"{word}.jsonl"))
    return paths


def mixed(files, *options, **changes):
    chosen = tuple((path, MixConfig(**given)) for path, given in zip(files, options, strict=True))
    return data_config("", mix=chosen, **changes)


def test_records_of_all_sources_one_after_another(files):
    mix = pickle.loads(pickle.dumps(load_mix(mixed(files, {}, {}))))
    assert len(mix) == 64
    assert [mix[i].id for i in (0, 39, 40, 63)] == ["red-0", "red-39", "blue-0", "blue-23"]
    assert mix.origin(40) == f"{files[1]}:1"


def test_a_limit_chooses_records_once_and_for_all(files):
    limited = pickle.loads(pickle.dumps(load_mix(mixed(files, {"limit": 10}, {"limit": 1000}))))
    ids = [limited[i].id for i in range(len(limited))]
    assert len(ids) == 34 and len(set(ids)) == 34
    reds = [int(i.removeprefix("red-")) for i in ids[:10]]
    assert reds == sorted(reds) and reds != list(range(10))
    assert [limited[i].id for i in range(10)] == ids[:10]
    assert limited.fingerprint() != load_mix(mixed(files, {}, {})).fingerprint()


def epoch(pipeline, number):
    """Ids of an epoch."""
    schedule, mix = pipeline._schedule, pipeline._samples.source
    return [mix[i].id for row in schedule.epoch(number) for i in row]


def test_weights(files, tokenizer):
    made = make_pipeline(mixed(files, {"weight": 0.3}, {"weight": 2.0}), tokenizer, vision=VISION, rows=4, seed=1)
    epochs = [epoch(made, number) for number in range(10)]
    for ids in epochs:
        assert Counter(i.split("-")[0] for i in ids) == {"red": 12, "blue": 48}
        assert all(n == 2 for i, n in Counter(ids).items() if i.startswith("blue"))
    # 0.3 of 40 in ten epochs is each of them three times, the first time before any comes again.
    reds = [i for ids in epochs for i in ids if i.startswith("red")]
    assert set(Counter(reds).values()) == {3}
    assert not set(epochs[0]) & set(epochs[1]) & set(reds)
    other = make_pipeline(mixed(files, {"weight": 0.3}, {"weight": 2.0}), tokenizer, vision=VISION, rows=4, seed=2)
    assert epoch(other, 0) != epochs[0]


def test_weights_are_part_of_a_position(files, tokenizer):
    def build(*options, **host):
        return make_pipeline(mixed(files, *options), tokenizer, vision=VISION, rows=4, seed=1, **host)

    straight = take(build({"weight": 0.5}, {}).batches(), 9)
    state = build({"weight": 0.5}, {}).batches().get_state() | {"batch": 5}
    with pytest.raises(UserError, match="other rows than these"):
        build({"weight": 0.75}, {}).batches().set_state(state)
    shares = []
    for host in range(2):
        batches = build({"weight": 0.5}, {}, process_index=host, process_count=2).batches()
        batches.set_state(state)
        shares.append(take(batches, 4))
    for want, first, second in zip(straight[5:], *shares, strict=True):
        assert np.array_equal(want.tokens, np.concatenate([first.tokens, second.tokens]))
    again = build({"weight": 0.5}, {}).batches()
    again.set_state(state)
    assert all(same(a, b) for a, b in zip(take(again, 4), straight[5:], strict=True))


def test_a_recipe_may_give_the_weight_alone(files):
    values = dataclasses.asdict(data_config(""))
    values["mix"] = ((files[0], 1), (files[1], {"limit": 5}))
    classes = {MediaConfig: LlavaMedia}
    config = build_config(type(data_config("")), values, classes=classes)
    assert [options for _, options in config.mix] == [MixConfig(weight=1.0), MixConfig(limit=5)]
    with pytest.raises(UserError, match=r"unknown key config.mix\[0\]\[1\].wieght .did you mean .*weight"):
        build_config(type(config), values | {"mix": ((files[0], {"wieght": 1.0}),)}, classes=classes)


def test_everything_wrong_in_one_message(files):
    with pytest.raises(UserError) as caught:
        load_mix(mixed([files[0], "none.json", *files], {"weight": 0.0}, {}, {"limit": 0}, {"image_folder": "nowhere"}))
    for part in ("weight = 0.0", "'none.json'", "limit = 0", "'nowhere'"):
        assert part in str(caught.value)
    for config in (data_config(""), data_config(files[0], mix=((files[1], MixConfig()),))):
        with pytest.raises(UserError, match="data.source names one source, data.mix several"):
            load_mix(config)
