"""Checkpoints of one stage: weights, optimizer, step, random key and data position, written in the background."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxvlm import processes
from jaxvlm.errors import UserError, listed, out_of_memory
from jaxvlm.training.checkpoint_files import LATER, LISTING, damage, position_of, saved_steps, whole_steps
from jaxvlm.training.quiet import drop_reports_of_orbax
from jaxvlm.training.state import State
from jaxvlm.trees import map_paths, paths

_TRIES = 3  # of a save without which the run cannot continue
_RETRY_SECONDS = 5.0


class Checkpoints:
    """The checkpoints of a stage, one folder a step.

    A checkpoint has three items: `params` (trained and frozen leaves, all that answering needs), `training` (step,
    optimizer state, random key, and an objective's reference) and `position` (JSON: of the data, and the stage's number
    of steps).
    """

    def __init__(self, folder: Path, *, keep: int | None = None):
        self.folder = folder.absolute()
        self._keep = keep
        self._saving = 0  # the step that is being written
        self._manager: _Manager | None = self._open()
        drop_reports_of_orbax()

    def newest(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return max(self.steps(), default=None)

    def save(self, state: State, data: dict[str, Any], steps: int, *, wait: bool = False) -> None:
        """Starts to write `state`; returns when the device arrays are copied, so that they may be donated.

        A save that fails, on a full disk for one, is reported and the run continues: earlier checkpoints are kept,
        and the next save tries again.

        Args:
          data: JSON-ready position in the data.
          steps: the stage's length.
          wait: until it is on disk; tries a few times.

        Raises:
          UserError: `wait` was asked for and it could not be written.
        """
        step = int(state.step)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave({"trained": state.trained, "frozen": state.frozen}),
            training=ocp.args.StandardSave(_training(state)),
            position=ocp.args.JsonSave({"data": data, "steps": steps}),
        )
        self.wait()
        processes.from_first(self._remove_halves)  # of a failed save whose threads continued to write
        for attempt in range(_TRIES if wait else 1):
            if attempt:
                time.sleep(_RETRY_SECONDS)
            if self._start(step, items) and (not wait or self.wait()):
                return
        if wait:
            raise UserError(
                f"step {step} could not be saved in {self.folder}; the reason is above; fix it, then "
                f"continue from step {self.newest() or 0} with --resume"
            )

    def _start(self, step: int, items: Any) -> bool:
        self._saving = step

        def start() -> None:
            if self._manager is None:
                self._manager = self._open()
            # force: the loop decides when to save; orbax would decide by its own count of steps.
            self._manager.save(step, args=items, force=True)

        return self._went_well(start)

    def wait(self) -> bool:
        """Waits until the last save is on disk; returns whether it is, and reports why not."""
        return self._went_well(lambda: self._manager and self._manager.wait_until_finished())

    def close(self) -> None:
        """Waits, then closes the folder."""
        self.wait()
        if self._saving:  # else the checkpoints are of a run that is only read
            processes.from_first(self._remove_halves)
        if self._manager is not None:
            self._manager.close()

    def _went_well(self, act: Callable[[], Any]) -> bool:
        """Whether `act` worked on all processes; if not, reports it and removes half-written files."""
        problem = ""
        try:
            act()
        except Exception as error:  # of the file system, wrapped by orbax and tensorstore in many ways
            problem = f"{type(error).__name__}: {error}"
        problems = [text for text in processes.exchange(problem) if text]
        if not problems:
            return True
        processes.log(
            "",
            f"ERROR: the checkpoint of step {self._saving} could NOT be saved in {self.folder}: {problems[0][:500]}",
            "The run continues and tries again at its next save; until then a stop loses what was trained since the "
            f"newest checkpoint, {self.newest() or 'the start'}. Is the disk full?",
        )
        with contextlib.suppress(Exception):
            if self._manager is not None:
                self._manager.close()
        self._manager = None
        processes.from_first(self._remove_halves)
        return False

    def _remove_halves(self) -> None:
        for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _open(self) -> _Manager:
        return _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._list_files),
            ),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "position": ocp.JsonCheckpointHandler(),
            },
        )

    def _list_files(self) -> None:
        """Adds the listing to a written checkpoint before it gets its final name."""
        if processes.index():
            return
        final = self.folder / str(self._saving)  # the target of stores that cannot rename
        for folder in (final, *self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")):
            files = [path for path in folder.rglob("*") if path.is_file() and path.name not in LATER]
            if files:
                sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
                (folder / LISTING).write_text(json.dumps(sizes, indent=1) + "\n")

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return processes.from_first(lambda: whole_steps(self.folder))

    def restore_newest(self, abstract: State) -> tuple[State, dict[str, Any], int] | None:
        """State, position in the data and step of the newest checkpoint that can be read; None if there is none.

        An unreadable one is set aside, with a warning.

        Raises:
          UserError: the checkpoint is of another model or optimizer.
          JaxRuntimeError: a device has too little memory; the checkpoint is not set aside.
        """
        for step in reversed(processes.from_first(lambda: saved_steps(self.folder))):
            problem = processes.from_first(lambda step=step: damage(self.folder / str(step)))  # type: ignore[misc]
            if not problem:
                restored = None
                try:
                    restored = self.restore(abstract, step)
                except UserError:
                    raise
                except Exception as error:  # every layer below has its own
                    if out_of_memory(error):
                        raise
                    problem = f"{type(error).__name__}: {error}"
                problem = next((text for text in processes.exchange(problem) if text), "")
                if restored is not None and not problem:
                    return *restored, step
            processes.from_first(lambda step=step, problem=problem: self._set_aside(step, problem))  # type: ignore[misc]
            if self._manager is not None:
                self._manager.close()
            self._manager = self._open()
        return None

    def _set_aside(self, step: int, problem: str) -> None:
        folder = self.folder.with_name(f"{self.folder.name}.damaged")
        folder.mkdir(exist_ok=True)
        target = folder / f"{step}-{time.time():.0f}"
        (self.folder / str(step)).rename(target)
        before = [other for other in saved_steps(self.folder) if other < step]
        instead = (
            f"going back to step {before[-1]}"
            if before
            else "there is none before it: the stage starts from its beginning"
        )
        processes.log(
            "",
            f"WARNING: the checkpoint {self.folder / str(step)} is damaged ({problem[:500]}); it is now in {target}; "
            f"{instead}",
        )

    def restore(self, abstract: State, step: int) -> tuple[State, dict[str, Any]]:
        """The state of `step` on the abstract state's shardings, and the position in the data.

        Raises:
          UserError: the checkpoint is of another model or optimizer.
        """
        trained, frozen = self.restore_params(abstract.trained, abstract.frozen, step)
        training = ocp.StandardCheckpointHandler().restore(
            epath.Path(self.folder / str(step) / "training"), args=ocp.args.StandardRestore(_training(abstract))
        )
        return State(trained=trained, frozen=frozen, **training), position_of(self.folder / str(step))["data"]

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
          parts: parts to read; None: all.
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
        # The handler directly: `Checkpointer.restore` ends in a barrier, which hangs if another process has failed.
        params = ocp.PyTreeCheckpointHandler().restore(
            epath.Path(self.folder / str(step) / "params"),
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
        )
        return params.get("trained", {}), params.get("frozen", {})

    def _saved(self, step: int) -> dict[str, Any]:
        """Shape and dtype of every leaf of a checkpoint, by path."""
        assert self._manager is not None
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
            raise UserError(
                f"the checkpoint {self.folder / str(step)} is of another model: {listed(differing)}; "
                "use the recipe it was made with, or another --workdir"
            )


def _training(state: State) -> dict[str, Any]:
    """The state that only training needs. The reference is saved, since a resumed run must not depend on its origin."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    names = ("step", "optimizer", "key", *(("reference",) if state.reference else ()))
    return {name: fields[name] for name in names}


class _Manager(ocp.CheckpointManager):
    """Does not ask jax about preemption: orbax would ask with its own count of steps."""

    def reached_preemption(self, step: int) -> bool:
        """Never; the loop checks for preemption."""
        return False
