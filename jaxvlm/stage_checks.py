"""What a stage must have whatever its data and weights are. Imports no JAX, so that the studio checks it, too."""

from __future__ import annotations

from jaxvlm.config import StageConfig
from jaxvlm.errors import UserError


def check_trains(stage: StageConfig, name: str) -> None:
    """Raises `UserError` if every part of a stage is frozen, or a policy is unknown."""
    stage.parts.adapters()
    if set(stage.parts.policies.values()) == {"frozen"}:
        parts = ", ".join(f"config.stage.{name}.parts.{part}" for part in stage.parts.policies)
        raise UserError(f'every part is frozen ({parts}); set one to "full"')


def check_batch_size(stage: StageConfig, name: str, devices: int) -> None:
    """Raises `UserError` unless the rows of a micro-batch divide over the devices that share them."""
    pieces = stage.micro_batches * devices
    if stage.global_batch_size % pieces:
        nearest = -(-stage.global_batch_size // pieces) * pieces
        raise UserError(
            f"global_batch_size {stage.global_batch_size} does not divide over {stage.micro_batches} micro-batches "
            f"and {devices} data devices; use a multiple of {pieces} (--config.stage.{name}.global_batch_size="
            f"{nearest}), or give devices to config.mesh.tensor"
        )


def check_heldout(stage: StageConfig, heldout: object) -> None:
    """Raises `UserError` if a stage evaluates held-out records and has none (`heldout`: their share or number)."""
    if stage.eval_every and not heldout:
        raise UserError(
            "eval_every is set, but no record is held out (data.heldout); hold out a share, such as 0.02, or set "
            "eval_every to 0"
        )
