"""What a scheduler may use."""

from __future__ import annotations

import dataclasses

import jax

from jaxvlm.errors import UserError
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.programs import STEP_TOKENS
from jaxvlm.models.decoder import check_window
from jaxvlm.sharding import batch_devices


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes of a scheduler.

    Attributes:
      slots: requests answered at once, rounded up to a multiple of the devices that split a batch.
      tokens: of a prompt and its answer together; None: those of the run's rows (data.tokens).
      queue: requests that may wait for a slot.
      steps: tokens of each answer between two reads. More are faster, and come in larger pieces.
      image_cache_bytes: features of images, on the devices.
      prefix_cache_bytes: keys and values of beginnings of prompts, on the devices.
      max_images: images and videos of a request.
    """

    slots: int = 8
    tokens: int | None = None
    queue: int = 256
    steps: int = 4
    image_cache_bytes: int = 2**29
    prefix_cache_bytes: int = 2**30
    max_images: int = 8

    def checked(self, engine: Engine) -> Sizes:
        """The limits for an engine.

        Raises:
          UserError: several hosts, values out of range, or rows longer than the decoder's attention window.
        """
        if jax.process_count() > 1:
            raise UserError(
                f"{jax.process_count()} processes: the server runs in one, with any number of local devices; start it "
                "on one host"
            )
        least = {"slots": 1, "queue": 1, "steps": 1, "image_cache_bytes": 0, "prefix_cache_bytes": 0, "max_images": 0}
        problems = [
            f"{name} = {getattr(self, name)}, expected {low} or more"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        tokens = engine.data.tokens if self.tokens is None else self.tokens
        if tokens < 2:
            problems.append(f"tokens = {tokens}, expected 2 or more")
        if self.steps > STEP_TOKENS:
            problems.append(f"steps = {self.steps}, expected at most {STEP_TOKENS}")
        if problems:
            raise UserError("limits of the server: " + "; ".join(problems))
        check_window(engine.model.config.language, tokens)
        devices = batch_devices(engine.mesh, engine.rules)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Sizes(**values | {"slots": -(-self.slots // devices) * devices, "tokens": tokens})


@dataclasses.dataclass(frozen=True)
class Sizes(Limits):
    """Limits that were checked."""

    tokens: int = 0
