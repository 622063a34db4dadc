import dataclasses

from jaxvlm.config import MediaConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class ToyConfig(ModelConfig):
    encoder_dim: int


MODEL, MEDIA = ToyConfig, MediaConfig
