"""Recipes as frozen dataclasses, one for each component; `config_reading.py` makes them.

A recipe is a Python file with one `get_config() -> ConfigDict`. Every key has its default and its explanation in
`configs/base.py`; this file has names and types, so an unknown or missing key raises.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Annotated, ClassVar

from jaxvlm.errors import UserError

PARTS = ("vision", "projector", "language")  # that a model may have, in this order


@dataclasses.dataclass(frozen=True)
class Choices:
    """The values that an option may have, for help and forms; what uses the value checks it (`options.py` reads this).

    Attributes:
      values: in the order in which they are offered.
      is_open: whether other values may be right too, such as the name of a module.
    """

    values: tuple[str, ...]
    is_open: bool = False


_POLICIES = Choices(("frozen", "full", "lora"))


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """CLIP or SigLIP vision encoder. Image sizes are in pixels."""

    image_size: int
    patch_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    norm_epsilon: float
    feature_layer: int  # whose output is the feature: -1 the last block, -2 the one before
    image_mean: tuple[float, float, float]  # of red, green and blue in 0..1, subtracted from the pixels
    image_std: tuple[float, float, float]  # by which the difference is divided
    class_token: bool  # CLIP has one, and a norm before the blocks; SigLIP a bias at the patches, and a pooling head
    pre_norm: bool
    patch_bias: bool
    pool: bool
    activation: Annotated[str, Choices(("quick_gelu", "gelu", "gelu_tanh", "silu"))]  # of the MLP; gelu: exact

    @property
    def features_per_image(self) -> int:
        """Number of patch features P of an image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """The padding colour: 255 times the mean, rounded down, as in LLaVA; about 0 after normalisation."""
        red, green, blue = (int(255 * x) for x in self.image_mean)
        return red, green, blue


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """From vision features to token embeddings: "linear", "mlp2x_gelu", "mlp3x_gelu", ..."""

    kind: Annotated[str, Choices(("linear", "mlp2x_gelu", "mlp3x_gelu"), is_open=True)]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """A stretch of the rotary frequencies: those that turn seldom over the original context are divided by `factor`."""

    factor: float  # by which the context is stretched
    low_freq_factor: float = 1.0  # turns up to which a frequency is divided; YaRN's beta_slow
    high_freq_factor: float = 4.0  # turns from which it is kept; YaRN's beta_fast
    original_max_positions: int = 0  # of the training before the stretch
    kind: str = "llama3"  # HF's rope_type: linear (divides all frequencies), llama3 or yarn
    attention_factor: float = 1.0  # of yarn: multiplies queries and keys


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """LLaMA decoder, and its relatives Mistral, Qwen2, Qwen3 and SmolLM2."""

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_embeddings: bool
    qkv_bias: bool  # biases at queries, keys and values, as Qwen2 has
    qk_norm: bool  # RMSNorm over each head's query and key, as Qwen3 has
    # Hugging Face's name of the decoder
    architecture: Annotated[str, Choices(("llama", "mistral", "qwen2", "qwen3"))] = "llama"
    # For each of the head_dim / 2 rotary frequencies the axis of the position that turns it; (): there is one axis.
    rope_axes: tuple[int, ...] = ()
    window: int | None = None  # Mistral's attention window in tokens; rows must not be longer, so it has no effect
    out_bias: bool = False  # a bias after attention, as LLaMA and Qwen3 have with HF's attention_bias


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model: the fields of all families. A family's own config adds others (`families/`)."""

    family: Annotated[
        str, Choices(("llava", "qwen_vl", "text"), is_open=True)
    ]  # of `families/registry.py`, or a module
    language: DecoderConfig
    compute_dtype: Annotated[str, Choices(("bfloat16", "float32"))]
    remat: Annotated[str, Choices(("none", "dots", "attention", "query_key", "query", "full", "offload"))]

    parts: ClassVar[tuple[str, ...]] = PARTS  # that a model of the family has


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Where the tokenizer comes from."""

    source: str
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1 for all remaining devices."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training record, new in every epoch."""

    flip: bool
    shift: int
    shuffle_turns: bool


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """One source of several."""

    weight: float = 1.0  # how often an epoch contains each record: 0.25 a new quarter each epoch, 2.0 all twice
    limit: int | None = None  # use at most that many of its records, a fixed random choice
    image_folder: str | None = None  # in place of the stage's
    boxes: str | None = None  # in place of the stage's


@dataclasses.dataclass(frozen=True)
class MediaConfig:
    """How images become part of a row: the fields of all families. A family's own config adds others."""

    units: int  # of a row: image slots, tiles or patches, as the family counts them


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which records, and how they become rows."""

    source: str
    mix: tuple[tuple[str, MixConfig], ...]
    image_folder: str
    allow_outside: bool
    answers: Annotated[str, Choices(("all", "last"))]
    heldout: float
    template: Annotated[str, Choices(("plain", "vicuna_v1", "llama2", "chatml", "document", "tokenizer"))]
    system: str | None
    tokens: int
    pack: bool
    augment: AugmentConfig
    on_bad: Annotated[str, Choices(("fail", "skip"))]
    workers: int
    media: MediaConfig = MediaConfig(0)  # a recipe of text alone has none
    control_tokens: tuple[str, ...] = ()  # runs before this option have none
    stop_tokens: tuple[str, ...] = ()  # the same
    boxes: Annotated[str, Choices(("", "pixels", "thousandths", "fractions", "resized"))] = ""  # the same


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of a part (arXiv:2106.09685)."""

    rank: int
    alpha: float
    dropout: float = 0.0  # of an adapter's input, while training
    targets: str = "blocks/.*"  # regex of the projections that get one, such as "blocks/attention/(q|v)"
    rslora: bool = False  # scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732)

    @property
    def scale(self) -> float:
        """The factor of the low-rank term."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def problems(self, where: str) -> list[str]:
        """Its invalid values, as messages; `where` is its path in the recipe."""
        found = [] if self.rank >= 1 else [f"{where}.rank = {self.rank}, expected 1 or more"]
        return found + ([] if 0 <= self.dropout < 1 else [f"{where}.dropout = {self.dropout}, expected 0 to below 1"])


@dataclasses.dataclass(frozen=True)
class LoraPartsConfig:
    """LoRA settings of the parts that can have adapters."""

    language: LoraConfig
    vision: LoraConfig | None = None


@dataclasses.dataclass(frozen=True)
class PartsConfig:
    """What is trained of each part: "frozen", "full" or, of vision and language, "lora" with the settings in `lora`.

    None: the model has no such part.
    """

    language: Annotated[str, _POLICIES]
    lora: LoraPartsConfig
    vision: Annotated[str | None, _POLICIES] = None
    projector: Annotated[str | None, Choices(("frozen", "full"))] = None

    @property
    def policies(self) -> dict[str, str]:
        """Part -> what is trained of it."""
        return {part: policy for part in PARTS if (policy := getattr(self, part)) is not None}

    def adapters(self) -> dict[str, LoraConfig]:
        """Part -> LoRA settings, for each part with policy "lora".

        Raises:
          UserError: every policy that is unknown or has a bad value, in one message.
        """
        problems: list[str] = []
        found: dict[str, LoraConfig] = {}
        for part, policy in self.policies.items():
            lora: LoraConfig | None = getattr(self.lora, part, None)
            if policy == "lora" and lora is None:
                problems.append(f'parts.{part} has no adapters; train it "full", it is small')
            elif policy == "lora" and lora is not None:
                found[part] = lora
                problems += lora.problems(f"parts.lora.{part}")
            elif policy not in ("frozen", "full"):
                known = '"frozen", "full", "lora" (with its settings in parts.lora)'
                problems.append(f"parts.{part} = {policy!r} is no policy; known: {known}")
        if problems:
            raise UserError("; ".join(problems))
        return found


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """Parameters with settings of their own; None keeps the optimizer's value."""

    learning_rate: float | None = None
    weight_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with one schedule for all, scaled by the learning rate of each group."""

    learning_rate: float
    schedule: Annotated[str, Choices(("cosine", "linear", "constant", "wsd"))]
    warmup: float
    weight_decay: float
    no_weight_decay: tuple[str, ...]
    groups: tuple[tuple[str, GroupConfig], ...]
    b1: float
    b2: float
    epsilon: float
    clip_norm: float


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One training run over one data set; the next stage starts from its result."""

    objective: Annotated[str, Choices(("sft",), is_open=True)]  # a name of `objectives/registry.py`, or a module
    parts: PartsConfig
    frozen_dtype: Annotated[str, Choices(("bfloat16", "float16", "float32"))]
    data: DataConfig
    optimizer: OptimizerConfig
    epochs: float
    global_batch_size: int
    micro_batches: int
    compiler_options: str
    log_every: int
    eval_every: int
    eval_records: int
    checkpoint_every: int
    keep_checkpoints: int
    on_nonfinite: Annotated[str, Choices(("stop", "skip"))]
    nonfinite_limit: int
    suites: tuple[str, ...] = ()  # runs before these three options have none
    suites_every: int = 0
    suites_limit: int = 256


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Sources of the initial weights; an empty string means random weights."""

    model: str
    language: str
    resize_vocab: bool
    vision: str = ""
    projector: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The test at the end of the last stage; an empty source means none."""

    source: str
    image_folder: str
    max_new_tokens: int
    batch_size: int
    suites_folder: str = "data/benchmarks"  # runs before this option have none


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How `generate` chooses a token where the user does not say; evaluations take the most likely one."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def problems(self) -> list[str]:
        """What is out of range."""
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature is {self.temperature}, expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}, expected more than 0 and at most 1 (all tokens)")
        if not 0 <= self.top_k < 2**31:
            problems.append(f"top_k is {self.top_k}, expected 0 (all tokens) or more")
        return problems


@dataclasses.dataclass(frozen=True)
class Config:
    """A recipe, resolved."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    mesh: MeshConfig
    init: InitConfig
    stages: tuple[str, ...]
    stage: dict[str, StageConfig]
    evaluation: EvaluationConfig
    seed: int
    steps: int | None
    profile: tuple[int, ...]
    date: str = ""  # fixed at a run's start; runs before this option have none
    generation: GenerationConfig = GenerationConfig()


_LEAST = {
    "global_batch_size": 1,
    "micro_batches": 1,
    "log_every": 1,
    "eval_every": 0,
    "eval_records": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "nonfinite_limit": 1,
    "suites_every": 0,
    "suites_limit": 0,
}  # of a stage


def _is_date(text: str) -> bool:
    try:
        return bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def check_values(config: Config) -> None:
    """Validates the options of a run and its stages; each component validates its own.

    Raises:
      UserError: naming every value that is too small or unknown.
    """
    problems = []
    if config.steps is not None and config.steps < 1:
        problems.append(f"config.steps = {config.steps}, expected 1 or more (None: as many as the epochs have)")
    profile = config.profile
    if profile and (len(profile) != 2 or not 1 <= profile[0] <= profile[1]):
        problems.append(f"config.profile = {profile}, expected (first, last) step, such as (10, 12), or () for none")
    if config.date and not _is_date(config.date):
        problems.append(f'config.date = "{config.date}", expected a date such as "2026-11-27", or ""')
    for key in ("max_new_tokens", "batch_size"):
        if getattr(config.evaluation, key) < 1:
            problems.append(f"config.evaluation.{key} = {getattr(config.evaluation, key)}, expected 1 or more")
    problems += [f"config.generation: {problem}" for problem in config.generation.problems]
    for name, stage in config.stage.items():
        where, window = f"config.stage.{name}", config.model.language.window
        if window is not None and stage.data.tokens > window:
            expected = f"at most {window} (config.model.language.window)"
            problems.append(f"{where}.data.tokens = {stage.data.tokens}, expected {expected}")
        for key, least in _LEAST.items():
            if getattr(stage, key) < least:
                problems.append(f"{where}.{key} = {getattr(stage, key)}, expected {least} or more")
        if bool(stage.suites) != bool(stage.suites_every):
            expected = "both or neither: the benchmarks, and the steps between two evaluations"
            problems.append(
                f"{where}.suites = {stage.suites} and {where}.suites_every = {stage.suites_every}, expected {expected}"
            )
        if not stage.epochs > 0:
            problems.append(f"{where}.epochs = {stage.epochs}, expected more than 0")
        if stage.frozen_dtype not in ("bfloat16", "float16", "float32"):
            problems.append(f'{where}.frozen_dtype = {stage.frozen_dtype!r}, expected "bfloat16" or "float32"')
        if stage.on_nonfinite not in ("stop", "skip"):
            problems.append(f'{where}.on_nonfinite = {stage.on_nonfinite!r}, expected "stop" or "skip"')
    if problems:
        raise UserError("; ".join(problems))
