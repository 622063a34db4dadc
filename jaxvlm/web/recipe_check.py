"""Reads a recipe as `train` does; ends with 2 if it has a mistake: python -m jaxvlm.web.recipe_check FILE [STAGE]."""

from __future__ import annotations

import sys

from jaxvlm.command import check_stage, load_config, run


def main(argv: list[str]) -> None:
    """Checks the recipe."""
    config = load_config(argv[0])
    if argv[1:]:
        check_stage(config, argv[1], argv[0])


if __name__ == "__main__":
    sys.exit(run(main))
