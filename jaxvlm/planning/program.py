"""The recipe's real train step: abstract state and batch, each leaf with its sharding on a slice."""

from __future__ import annotations

import dataclasses

import jax

from jaxvlm.batch import Batch
from jaxvlm.config import Config, StageConfig
from jaxvlm.data.rows.pipeline import batch_spec
from jaxvlm.families.build import stage_model
from jaxvlm.families.registry import media_layout
from jaxvlm.media import MediaLayout
from jaxvlm.planning.slices import Slice
from jaxvlm.sharding import Rules, batch_devices, batch_sharding, make_mesh
from jaxvlm.stage_checks import check_batch_size, check_trains
from jaxvlm.training.state import Layout, state_layout


@dataclasses.dataclass(frozen=True)
class Step:
    """A stage's abstract state and batch, each leaf with its sharding on the slice."""

    config: Config
    stage_name: str
    stage: StageConfig
    slice: Slice
    layout: Layout
    media: MediaLayout
    batch: Batch

    @property
    def rows_per_chip(self) -> int:
        """Rows of a batch on one device, all micro-batches together."""
        return self.stage.global_batch_size // batch_devices(self.layout.mesh, self.layout.rules)


def build_step(config: Config, stage_name: str, on: Slice) -> Step:
    """The abstract train step of a stage.

    Raises:
      UserError: mesh or batch do not divide over the slice; nothing trains.
    """
    stage, rules = config.stage[stage_name], Rules()
    check_trains(stage, stage_name)
    mesh = make_mesh(config.mesh, on.devices())
    check_batch_size(stage, stage_name, batch_devices(mesh, rules))
    layout = state_layout(stage_model(config, stage), stage, 1000, mesh, rules)
    media = media_layout(config.model, stage.data)
    spec = batch_spec(stage.data, media, stage.global_batch_size)
    sharding = batch_sharding(mesh, rules)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), spec)
    return Step(config, stage_name, stage, on, layout, media, batch)
