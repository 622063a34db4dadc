"""Objectives by name. A name that is not in the table is a module, such as "my_package.my_objective"."""

from __future__ import annotations

import importlib

from jaxvlm.errors import UserError
from jaxvlm.objectives.objective import Objective

OBJECTIVES = {"sft": "jaxvlm.objectives.sft"}


def find_objective(name: str) -> Objective:
    """The objective of a stage; only its module is imported, so this file needs no JAX.

    Args:
      name: `config.stage.NAME.objective`.

    Raises:
      UserError: no such module, or it defines no objective.
    """
    try:
        found = importlib.import_module(OBJECTIVES.get(name, name)).OBJECTIVE
    except (ImportError, ValueError, AttributeError) as error:
        raise UserError(
            f'objective = "{name}" is no objective; known: {", ".join(OBJECTIVES)}, or a module that can be imported '
            f"and defines OBJECTIVE ({error}) (config.stage.NAME.objective)"
        ) from error
    return found
