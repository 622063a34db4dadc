"""Continues the pre-training of Llama 3.1 8B on plain text: every token of a document is learned.

    python -m jaxvlm.train --config configs/text_pretrain.py --config.stage.pretrain.data.source='data/books/*.txt'

A source is .txt files (each a document), or JSON Lines, Parquet, Arrow, CSV or a data set of the hub with a column
"text". Documents share rows, do not see each other, and end in the tokenizer's end token; one that is longer than a row
is cut into passages at lines or words, and no part of it is lost.

The decoder of the run is a source for others: --config.init.language=runs/text_pretrain.
"""

from ml_collections import ConfigDict

from configs import base
from jaxvlm.models import variants

MODEL = "meta-llama/Llama-3.1-8B"


def get_config() -> ConfigDict:
    """The recipe."""
    c, stage = base.text_config(), base.text_stage()
    c.model.language.update(variants.language("llama31_8b"))
    c.init.language = c.tokenizer.source = MODEL
    c.stages, c.stage.pretrain = ("pretrain",), stage
    stage.data.update(source="data/corpus.jsonl", template="document", tokens=8192, workers=4)
    stage.data.heldout = 0.005
    stage.global_batch_size = 64  # half a million tokens
    stage.optimizer.update(learning_rate=2e-5, weight_decay=0.1, b2=0.95)
    stage.eval_every = 500
    return c
