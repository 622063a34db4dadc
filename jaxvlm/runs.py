"""A run's folder: the paths of its files, the resume guard, and the lock.

config.json       the resolved recipe            metrics.jsonl, tensorboard/, loss.png   curves
tokenizer/        as Hugging Face saves one      ledger.json    the fate of every record, by stage
checkpoints/STAGE/STEP                           evaluation.json, samples.png            the test's answers
heartbeats/I.json the state of process I         nonfinite/STAGE-STEP, profile/STAGE     diagnostics
process.json      the process that trains        exit.json      how it ended
evaluations/      results of benchmarks
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.config import Config
from jaxvlm.config_reading import to_dict
from jaxvlm.errors import UserError
from jaxvlm.families.registry import resolve
from jaxvlm.files import Lock, replace_text

# Options that may change on resume, as patterns of whole paths: a stage may have any name, "mesh" too.
_FREE = re.compile(
    r"config\.(mesh\..+|evaluation\..+|profile|model\.(compute_dtype|remat)|stage\.[^.]+\.("
    r"frozen_dtype|micro_batches|compiler_options|log_every|eval_every|eval_records|checkpoint_every|keep_checkpoints|"
    r"on_nonfinite|nonfinite_limit|suites|suites_every|suites_limit|data\.(workers|on_bad)))"
)


class RunFolder:
    """The folder of a run. The constructor reads and writes nothing.

    Attributes:
      path: the folder.
      lock: keeps a second run out; taken by `start`.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.lock = Lock(self.path / "lock")
        self.config_file = self.path / "config.json"
        self.tokenizer = self.path / "tokenizer"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.curves = self.path / "loss.png"
        self.ledger_file = self.path / "ledger.json"
        self.process_file = self.path / "process.json"
        self.exit_file = self.path / "exit.json"
        self.evaluation_file = self.path / "evaluation.json"
        self.samples = self.path / "samples.png"
        self.evaluations = self.path / "evaluations"  # of benchmarks
        self.nonfinite = self.path / "nonfinite"
        self.origin_file = self.path / "source.json"  # of an imported run: sources, spelling of their tensors

    def __str__(self) -> str:
        return str(self.path)

    def checkpoints(self, stage: str) -> Path:
        """The folder of a stage's checkpoints, one folder per step."""
        return self.path / "checkpoints" / stage

    def profile(self, stage: str) -> Path:
        """The folder of a stage's profile."""
        return self.path / "profile" / stage

    def results(self, name: str) -> RunFolder:
        """The folder of answers to other data than the recipe's own test; with the file names of a run."""
        return RunFolder(self.path / "evaluation" / name)

    def heartbeat(self, process: int) -> Path:
        """The file in which a process reports its phase and step."""
        return self.path / "heartbeats" / f"{process}.json"

    @property
    def has_begun(self) -> bool:
        """Whether any stage has started; before that the folder has nothing worth keeping."""
        return (self.path / "checkpoints").exists()

    def started(self, stages: Sequence[str]) -> list[str]:
        """Those of `stages` that have started here."""
        return [name for name in stages if self.checkpoints(name).exists()]

    def save_config(self, config: Config) -> None:
        """Writes the resolved recipe."""
        replace_text(self.config_file, json.dumps(to_dict(config), indent=1) + "\n")

    def date_of(self, config: Config) -> str:
        """The date of a run of the recipe here: the recipe's, else that of the run's start, else today's."""
        if config.date:
            return config.date
        begun = self.has_begun and self.config_file.is_file()
        return self.load_config().date if begun else datetime.date.today().isoformat()

    def load_config(self) -> Config:
        """The resolved recipe of the run.

        Raises:
          UserError: the folder is not a run's, or its recipe cannot be read.
        """
        if not self.config_file.is_file():
            raise UserError(
                f"{self} is not the folder of a run: it has no config.json; pass the --workdir of a train command"
            )
        try:
            saved = json.loads(self.config_file.read_text())
        except ValueError as error:
            raise UserError(
                f"{self.config_file} is damaged ({error}); repair it, or start a new run in another folder"
            ) from error
        if isinstance(saved, dict) and "model_type" in saved:
            raise UserError(
                f"{self} is a Hugging Face folder, not that of a run; ask it with `python -m jaxvlm.generate --from "
                f"{self}`, or make a run of it with `python -m jaxvlm.convert import --from {self} --to DIR`"
            )
        return resolve(saved, str(self.config_file))

    def check(self, config: Config, stages: Sequence[str], how: str) -> None:
        """Checks that a run of the recipe may start or resume here, and locks the folder if it exists.

        Args:
          how: "start", "resume" or "resume or start".

        Raises:
          UserError: the folder holds a run that is not to be resumed, or one of another recipe; it is in use; there is
            nothing to resume.
        """
        if self.path.is_dir():
            self.lock.take()
        elif self.path.exists():
            raise UserError(f"--workdir {self} is a file; a run is kept in a folder")
        started = self.started(stages)
        if started and how == "start":
            raise UserError(
                f"{self} already holds a run (stages started: {', '.join(started)}); pass --resume to continue it, "
                "or choose another --workdir"
            )
        if self.has_begun:
            if differing := differing_keys(self.load_config(), config):
                raise UserError(
                    f"the run in {self} was started with another recipe: {'; '.join(differing)}; "
                    "resume with the same values, or choose another --workdir"
                )
        elif how == "resume":
            raise UserError(f"nothing to resume in {self}; leave --resume out to start")

    def create(self, config: Config) -> None:
        """Creates the folder if it is missing, locks it, and saves the recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        self.save_config(config)

    def ledgers(self) -> dict[str, Any]:
        """The ledgers written so far, by stage; {} if the file is missing or cannot be read."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return dict(json.loads(self.ledger_file.read_text()))
        return {}

    def save_ledger(self, stage: str, ledger: dict[str, Any]) -> None:
        """Adds a stage's ledger to those of the other stages. It is written last: the stage is then finished."""
        replace_text(self.ledger_file, json.dumps(self.ledgers() | {stage: ledger}, indent=1) + "\n")

    def describe(self, stage: str, step: int) -> list[str]:
        """A line for each file that exists: its path and its contents."""
        files = {
            self.checkpoints(stage) / str(step): "the weights",
            self.metrics: "the metrics of each step",
            self.tensorboard: "the same for `tensorboard --logdir`",
            self.curves: "the curves",
            self.samples: "test images with question, answer and reference",
            self.evaluation_file: "every answer of the test",
            self.ledger_file: "the fate of every record",
        }
        return [f"  {path}: {what}" for path, what in files.items() if path.exists()]


def example(folder: object, config: Config) -> str:
    """The command that asks the model of a run."""
    image = "--image FILE " if "vision" in config.model.parts else ""
    return f'python -m jaxvlm.generate --run {folder} {image}--prompt "..."'


def differing_keys(saved: Config, now: Config) -> list[str]:
    """`key: old -> new` for every value that a resumed run must not change."""
    old, new = all_keys(saved), all_keys(now)
    names = sorted(old.keys() | new.keys())
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in names
        if old.get(name) != new.get(name) and not _FREE.fullmatch(name)
    ]


def all_keys(config: Config) -> dict[str, Any]:
    """Every value of a recipe by its path, such as `config.model.language.embed_dim`."""
    return dict(_leaves(to_dict(config)))


def _leaves(tree: Any, prefix: str = "config") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}.{name}")
    else:
        yield prefix, json.loads(json.dumps(tree))
