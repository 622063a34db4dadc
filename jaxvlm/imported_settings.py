"""What an imported run takes from the small files of its folder: template, media, stop tokens, longest row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxvlm.config import DataConfig, MediaConfig, TokenizerConfig
from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.jinja_template import recognise
from jaxvlm.data.text.templates import OWN_TEMPLATE
from jaxvlm.data.text.tokenizer import image_token, image_token_id, load_tokenizer
from jaxvlm.errors import UserError
from jaxvlm.weights.codec import WeightSource
from jaxvlm.weights.side_files import adopt_processor_template, read_max_positions, read_sampling, read_stop_tokens

STAGE = "imported"  # the only stage of a run that `convert import` makes
_DEFAULT = "vicuna_v1"


def side_settings(source: WeightSource, tokenizer: Any, template: str | None) -> tuple[dict[str, Any], list[str]]:
    """The settings of `config.stage.NAME.data` that the files of a source give.

    Args:
      source: that of the decoder.
      tokenizer: of the source, with the chat template of its folder.
      template: the user's choice; None: the source's.

    Returns:
      The settings, with those of `config.generation` under "generation"; and lines about what was taken over and what
      was not.

    Raises:
      UserError: config.json and the tokenizer give the image token different ids, or a file is invalid.
    """
    _check_image_token(source, tokenizer)
    settings, notes = _choose_template(source, tokenizer, template)
    if source.media:
        settings["media"] = dict(source.media)
    if source.path.is_dir():
        settings["stop_tokens"] = read_stop_tokens(source.path, tokenizer)
        if positions := read_max_positions(source.path):
            window = getattr(source.configs["language"], "window", None)
            settings["tokens"] = positions if window is None else min(positions, window)
        settings["generation"], others = read_sampling(source.path)
        if others:
            given = ", ".join(f"{name} {value}" for name, value in others.items())
            notes.append(f"not used: {given} of generation_config.json")
    taken = [f"template {settings['template']}", *(f"{name} {value}" for name, value in source.media.items())]
    if settings.get("stop_tokens"):
        taken.append(f"stop tokens {' '.join(settings['stop_tokens'])}")
    if "tokens" in settings:
        taken.append(f"up to {settings['tokens']} tokens")
    taken += [f"{name} {value}" for name, value in settings.get("generation", {}).items()]
    return settings, [f"settings: {', '.join(taken)}", *notes, *(f"not used: {note}" for note in source.notes)]


def source_tokenizer(source: WeightSource) -> Any:
    """The tokenizer of a source, with the chat template of its folder.

    Raises:
      UserError: there is none that can be read.
    """
    tokenizer = load_tokenizer(TokenizerConfig(str(source.path), vocab_size=0))  # 0: none is trained
    adopt_processor_template(tokenizer, source.path)
    return tokenizer


def settings_of_folder(source: WeightSource) -> dict[str, Any]:
    """As `side_settings` without those that no file gives; {} for a source without a usable tokenizer."""
    try:
        tokenizer = source_tokenizer(source)
        settings, _ = side_settings(source, tokenizer, None)
    except UserError:
        return {}
    if not (source.template or tokenizer.chat_template):
        del settings["template"]
    return settings


def overridden(settings: Mapping[str, Any], data: DataConfig) -> list[str]:
    """The settings of a source that a stage has otherwise: "template tokenizer (here: plain)", ..."""
    had = {name: settings[name] for name in ("template", "system", "stop_tokens") if name in settings}
    has = {name: getattr(data, name) for name in had}
    general = {field.name for field in dataclasses.fields(MediaConfig)}  # the others are the family's
    of_media = {name: value for name, value in settings.get("media", {}).items() if name not in general}
    had |= of_media
    has_of_media = dataclasses.asdict(data.media)
    has |= {name: has_of_media.get(name) for name in of_media}
    return [f"{name} {_shown(had[name])} (here: {_shown(has[name])})" for name in had if had[name] != has[name]]


def _shown(value: Any) -> str:
    return (" ".join(value) if isinstance(value, tuple) else json.dumps(value, ensure_ascii=False)) or "none"


def _choose_template(source: WeightSource, tokenizer: Any, template: str | None) -> tuple[dict[str, Any], list[str]]:
    """The settings `template` and perhaps `system`, and lines about what is not used."""
    if template is None and (ours := recognise(tokenizer)):
        return {"template": ours[0], "system": ours[1]}, []
    name, notes = _template_name(source, tokenizer, template)
    return {"template": name}, notes


def _template_name(source: WeightSource, tokenizer: Any, template: str | None) -> tuple[str, list[str]]:
    has_own = bool(getattr(tokenizer, "chat_template", None))
    chosen = template or source.template
    if chosen:
        unused = has_own and chosen != OWN_TEMPLATE
        return chosen, [f"not used: the chat template of {source.spec}; {chosen} replaces it"] if unused else []
    if not has_own:
        return _DEFAULT, [f"{source.spec} has no chat template: conversations are written as {_DEFAULT} (--template)"]
    try:
        renderer = Renderer(tokenizer, OWN_TEMPLATE, image_token_id=image_token_id(tokenizer))
        images = ("image",) if source.media else ()
        turns = (Turn("user", f"{IMAGE}\nquestion" if images else "question"),)
        renderer.render_prompt(Record("probe", turns, images, "a probe of one question"))
    except (UserError, RecordError) as error:
        return _DEFAULT, [f"not used: {error}; {_DEFAULT} replaces it (--template)"]
    return OWN_TEMPLATE, []


def _check_image_token(source: WeightSource, tokenizer: Any) -> None:
    spelling = image_token(tokenizer)
    own = None if spelling is None else tokenizer.get_vocab()[spelling]
    if source.image_token_id is not None and own is not None and own != source.image_token_id:
        raise UserError(
            f"one id must stand for an image: config.json of {source.path} has image_token_index = "
            f"{source.image_token_id} and its tokenizer {spelling} = {own}; correct the one that is wrong"
        )
