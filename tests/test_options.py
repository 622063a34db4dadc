"""The whole list of options. It grows only on purpose."""

import importlib
from collections.abc import Iterator

import pytest
from ml_collections import ConfigDict

from configs import base
from jaxvlm.__main__ import COMMANDS
from jaxvlm.command import Parser

REMEDY = (
    "the list of options changed. Before a new one: can it be derived, or is it two configs rather than a switch? If "
    "it is needed, explain it where it is defined and add it to the list in tests/test_options.py"
)
RECIPE = """\
: date profile seed stages steps
evaluation: batch_size image_folder max_new_tokens source suites_folder
generation: temperature top_k top_p
init: language model projector resize_vocab vision
mesh: data fsdp tensor
model: compute_dtype family remat
model.language: architecture embed_dim head_dim mlp_dim norm_epsilon num_heads num_kv_heads num_layers out_bias
  qk_norm qkv_bias rope_axes rope_scaling rope_theta tie_embeddings vocab_size window
model.projector: kind
model.vision: activation class_token embed_dim feature_layer image_mean image_size image_std mlp_dim norm_epsilon
  num_heads num_layers patch_bias patch_size pool pre_norm
stage.NAME: checkpoint_every compiler_options epochs eval_every eval_records frozen_dtype global_batch_size
  keep_checkpoints log_every micro_batches nonfinite_limit objective on_nonfinite suites suites_every suites_limit
stage.NAME.data: allow_outside answers boxes control_tokens heldout image_folder mix on_bad pack source stop_tokens
  system template tokens workers
stage.NAME.data.augment: flip shift shuffle_turns
stage.NAME.data.media: aspect units
stage.NAME.optimizer: b1 b2 clip_norm epsilon groups learning_rate no_weight_decay schedule warmup weight_decay
stage.NAME.parts: language projector vision
stage.NAME.parts.lora.language: alpha dropout rank rslora targets
stage.NAME.parts.lora.vision: alpha dropout rank rslora targets
tokenizer: source vocab_size
"""
FLAGS = """\
convert export: --adapter --base --dtype --merge --out --overwrite --part --push-to-hub --resize-embeddings --run
  --shard-size --stage --step
convert import: --adapter --from --seed --template --to
convert verify: --image --logits --prompt a b
evaluate: --adapter --answers --batch-size --coordinator --data --dialect --distributed --from --image-folder --limit
  --max-new-tokens --num-processes --out --process-id --resume --run --scoring --split --stage --step --suite --system
  --template
generate: --adapter --from --image --max-new-tokens --prompt --run --seed --stage --step --stop --system --temperature
  --template --top-k --top-p --video
inspect_data check: --config --out --rows --stage
inspect_data prepare: --config --jpeg --on-bad --out --shard-records --stage
inspect_data show: --batch --config --first --out --rows --stage
plan: --budget-minutes --cache --config --filled --help-config --no-cache --operations --price-per-chip-hour --records
  --samples-per-row --search --stage --supervised --topology --units-per-row
serve: --adapter --allow-media --allow-origin --allow-url --api-key-file --from --grace --host --image-cache-bytes
  --max-body --max-images --max-pixels --name --port --prefix-cache-bytes --queue --run --slots --stage --step --steps
  --system --template --tokens
studio: --allow-host --data --host --language --open --port --prefix --read-only --recipes --root
train: --config --coordinator --distributed --help-config --num-processes --process-id --resume --resume-or-start
  --stage --workdir
"""


def listed(text: str) -> set[str]:
    """`group: name name` and, indented, more names: "group name" for each."""
    found, group = set(), ""
    for line in text.splitlines():
        if not line.startswith(" "):
            group, _, line = line.partition(":")
        found |= {f"{group} {name}".strip() for name in line.split()}
    return found


def leaves(config: ConfigDict, group: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from leaves(value, f"{group}.{name}".strip("."))
        else:
            yield f"{group} {name}".strip()


def flags(parser, group: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, command in action.choices.items():
                yield from flags(command, f"{group} {name}")
        else:
            yield from (f"{group} {name}" for name in action.option_strings or [action.dest])


def changed(found: set[str], expected: set[str]) -> str:
    return f"{REMEDY}\nnew: {sorted(found - expected)}\ngone: {sorted(expected - found)}"


def test_options_of_a_recipe():
    recipe = base.get_config()
    recipe.stage.NAME = base.stage()
    found, expected = set(leaves(recipe)), listed(RECIPE)
    assert found == expected, changed(found, expected)


class Parsed(Exception):  # noqa: N818 - not an error
    pass


def parser_of(command: str, monkeypatch) -> Parser:
    """The parser that a command makes; the command goes no further."""

    def stop(parser, *_):
        raise Parsed(parser)

    monkeypatch.setattr(Parser, "parse_known_args", stop)
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"jaxvlm.{command}").main([])
    return parsed.value.args[0]


def test_flags_of_the_commands(monkeypatch):
    everywhere = ("-h", "--help", "--json", "--debug")
    made = [name for command in COMMANDS for name in flags(parser_of(command, monkeypatch), command)]
    found, expected = {name for name in made if name.split()[-1] not in everywhere}, listed(FLAGS)
    assert found == expected, changed(found, expected)
