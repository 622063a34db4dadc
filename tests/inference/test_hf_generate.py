"""Greedy answers equal those of transformers' `generate`, batched and padded here, one by one there."""

import jax
import numpy as np
import pytest
import torch

from jaxvlm.inference.decoding import decode
from jaxvlm.inference.programs import Programs
from tests.parity import pairs, tiny_llava

pytestmark = pytest.mark.torch

COUNT = 8


@pytest.mark.parametrize("config", [tiny_llava.tiny_config(), tiny_llava.tied_config()], ids=["untied", "tied"])
def test_greedy_answers_are_those_of_transformers(config):
    pair = pairs.make_pair(config)
    samples = [
        tiny_llava.make_sample(config, i, images=n, text=t) for i, (n, t) in enumerate([(1, 8), (2, 9), (0, 10)])
    ]
    expected = []
    for sample in samples:
        inputs = pairs.hf_batch(config, [sample])
        del inputs["labels"]
        with torch.no_grad():
            found = pair.hf.generate(**inputs, max_new_tokens=COUNT, do_sample=False, eos_token_id=None, use_cache=True)
        expected.append(found[0, len(sample.tokens) :].numpy())
    batch = tiny_llava.make_batch(config, [[sample] for sample in samples], tokens=40, images=2)
    tokens, lengths = decode(Programs(pair.model, jax.device_put(pair.params), ()), batch, np.arange(3), COUNT)
    np.testing.assert_array_equal(tokens, expected)
    assert len({tuple(answer) for answer in expected}) == 3
