"""Trains the toy family on pairs; JAXVLM_TEST_DATA names them."""

from tests.toy_family import recipe


def get_config():
    c = recipe.get_config()
    stage = c.stage.only
    stage.objective = "tests.toy_objective"
    stage.data.tokens = 96
    stage.optimizer.learning_rate = 1e-3
    c.evaluation.source = ""
    return c
