"""Checkpoints of one stage: weights, optimizer, step, random key and data position, written in the background."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxvlm.errors import UserError
from jaxvlm.training.optimizer import map_paths, paths
from jaxvlm.training.state import State


class Checkpoints:
    """The checkpoints of a stage, one folder a step.

    A checkpoint has three items: `params` (trained and frozen leaves, all that answering needs), `training` (step,
    optimizer state, random key) and `position` (JSON: of the data, and the stage's number of steps).
    """

    def __init__(self, folder: Path, *, keep: int | None = None):
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "position": ocp.JsonCheckpointHandler(),
            },
        )

    def newest(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: State, data: dict[str, Any], steps: int) -> None:
        """Starts to write `state`; returns when the device arrays are copied, so that they may be donated.

        Args:
          data: JSON-ready position in the data.
          steps: the stage's length.
        """
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave({"trained": state.trained, "frozen": state.frozen}),
                training=ocp.args.StandardSave(_training(state)),
                position=ocp.args.JsonSave({"data": data, "steps": steps}),
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints that are kept, in order."""
        return sorted(self._manager.all_steps())

    def restore(self, abstract: State, step: int) -> tuple[State, dict[str, Any]]:
        """The state of `step` on the abstract state's shardings, and the position in the data.

        Raises:
          UserError: the checkpoint is of another model or optimizer.
        """
        trained, frozen = self.restore_params(abstract.trained, abstract.frozen, step)
        restored = self._restore(step, training=ocp.args.StandardRestore(_training(abstract)))
        position = self._restore(step, position=ocp.args.JsonRestore())
        return State(trained=trained, frozen=frozen, **restored["training"]), position["position"]["data"]

    def restore_params(
        self,
        trained: dict,
        frozen: dict,
        step: int,
        *,
        parts: tuple[str, ...] | None = None,
        keep_dtypes: bool = False,
    ) -> tuple[dict, dict]:
        """The leaves of `step` on the shardings of the abstract `trained` and `frozen`.

        Args:
          parts: those to read; None: all.
          keep_dtypes: whether leaves have the dtypes they were saved in, not those of the abstract ones.

        Raises:
          UserError: the checkpoint is of another model: every leaf that differs, or the first ten.
        """
        wanted = {"trained": trained, "frozen": frozen}
        saved = self._saved(step)
        self._compare(saved, wanted, step)
        if parts is not None:
            wanted = {k: {part: x for part, x in tree.items() if part in parts} for k, tree in wanted.items()}
        if keep_dtypes:
            wanted = map_paths(
                lambda path, x: jax.ShapeDtypeStruct(x.shape, saved[path].dtype, sharding=x.sharding), wanted
            )
        wanted = {name: tree for name, tree in wanted.items() if tree}
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            params = reader.restore(
                self.folder / str(step) / "params",
                args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
            )
        return params.get("trained", {}), params.get("frozen", {})

    def is_finished(self) -> bool:
        """Whether the newest checkpoint is that of the stage's last step."""
        step = self.newest()
        if step is None:
            return False
        return self._restore(step, position=ocp.args.JsonRestore())["position"]["steps"] == step

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self._manager.close()

    def _restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _saved(self, step: int) -> dict[str, Any]:
        """Shape and dtype of every leaf of a checkpoint, by path."""
        metadata = self._manager.item_metadata(step).params
        return paths({name: metadata.get(name) or {} for name in ("trained", "frozen")})

    def _compare(self, leaves: dict[str, Any], wanted: dict, step: int) -> None:
        saved = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
        ours = {path: tuple(leaf.shape) for path, leaf in paths(wanted).items()}
        differing = [
            f"{path}: {saved.get(path, 'absent')} saved, {ours.get(path, 'absent')} in this recipe"
            for path in sorted(saved.keys() | ours.keys())
            if saved.get(path) != ours.get(path)
        ]
        if differing:
            more = f" and {len(differing) - 10} more" if len(differing) > 10 else ""
            raise UserError(
                f"the checkpoint {self.folder / str(step)} is of another model: {'; '.join(differing[:10])}{more}; "
                "use the recipe it was made with, or another --workdir"
            )


def _training(state: State) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: fields[name] for name in ("step", "optimizer", "key")}
