"""Fine-tunes Llama 3.1 8B Instruct on conversations: dataset_info.json, OpenAI's messages, LLaVA's files, and others.

    python -m jaxvlm.train --config configs/text_sft.py --config.stage.sft.data.source=data/talk.jsonl

For adapters add --config.stage.sft.parts.language=lora and --config.stage.sft.optimizer.learning_rate=2e-4. For another
decoder set `model.language` (a name of jaxvlm/models/variants.py) and its two sources. docs/performance.md has the
memory and the estimated time on TPU slices; it has not been run on one by us.
"""

from ml_collections import ConfigDict

from configs import base
from jaxvlm.models import variants

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def get_config() -> ConfigDict:
    """The recipe."""
    c, stage = base.text_config(), base.text_stage()
    c.model.language.update(variants.language("llama31_8b"))
    c.init.language = c.tokenizer.source = MODEL
    c.stages, c.stage.sft = ("sft",), stage
    stage.data.update(source="data/dataset_info.json:mine", template="tokenizer", tokens=4096, workers=4)
    stage.data.heldout = 0.01
    stage.global_batch_size = 32
    stage.optimizer.learning_rate = 1e-5
    stage.eval_every = 200
    return c
