"""A tiny LLaVA whose decoder and tokenizer are those of the run JAXVLM_TEST_RUN, a run of text."""

import os

from tests import tiny


def get_config():
    stage = tiny.stage_recipe()
    stage.data.update(source=os.environ["JAXVLM_TEST_DATA"], system="", tokens=48)
    stage.parts.update(vision="frozen", language="frozen")
    c = tiny.recipe(align=stage)
    c.model.language.vocab_size = 340
    c.init.language = c.tokenizer.source = os.environ["JAXVLM_TEST_RUN"]
    c.steps, c.mesh.fsdp = 1, 1
    return c
