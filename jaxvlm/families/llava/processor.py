"""The small files of an exported LLaVA folder: tokenizer, chat template, image processor, stop tokens.

With them `AutoProcessor` of transformers makes of a conversation what `data/text/conversation.py` and
`data/media/images.py` make of it. The chat templates say in Jinja what `TEMPLATES` says. Two things they cannot do:
transformers tokenizes a prompt in one pass, and it takes "<image>" and the spelling of control tokens in any text for
the tokens themselves.

Source: transformers models/llava/processing_llava.py, image_processing_llava.py and processing_utils.py.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken

from jaxvlm.config import DataConfig, VisionConfig
from jaxvlm.data.records import IMAGE
from jaxvlm.data.text.conversation import OWN_TEMPLATE, TEMPLATES, Renderer, Template
from jaxvlm.errors import UserError
from jaxvlm.families.llava.config import LlavaMedia

_BICUBIC = 3  # Pillow's number
# What can follow an image or BOS: a newline, a word, a space.
_PROBES = ("\nWhat is it?", "What is it?", " ASSISTANT:")


def ensure_image_token(tokenizer: Any) -> tuple[Any, int, list[str]]:
    """A tokenizer of which "<image>" is one special token, as `LlavaProcessor` needs.

    Whether the model has a row for its id is the caller's to check (`hf.hf_llava_config` does): Vicuna's 32,000
    rows have none left for it, Qwen's tokenizers have fewer tokens than the model has rows.

    Args:
      tokenizer: of transformers; it is not changed.

    Returns:
      The tokenizer or an extended copy of it, the token's id, and the tokens that were added ([] or ["<image>"]).
    """
    known = tokenizer.get_vocab().get(IMAGE)
    if known is not None and IMAGE in tokenizer.all_special_tokens:
        return tokenizer, known, []
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [AddedToken(IMAGE, normalized=False, special=True)]},
        replace_extra_special_tokens=False,
    )
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE), [] if known is not None else [IMAGE]


def write_processor(folder: str | Path, tokenizer: Any, vision: VisionConfig, data: DataConfig) -> list[str]:
    """Writes the tokenizer's files, the chat template, preprocessor_, processor_ and generation_config.json.

    The image processor is CLIP's for aspect "square" and LLaVA's for "pad", with the encoder's own mean and standard
    deviation: SigLIP's processor would squeeze an image into a square, which no training of ours does.

    Args:
      folder: is made if need be; files of these names are overwritten.
      tokenizer: a fast tokenizer of transformers with "<image>" (`ensure_image_token`); it is not changed.
      vision: of the model.
      data: `template`, `system` and `aspect` of the stage whose result is exported.

    Returns:
      What transformers will do otherwise than we do, in sentences; none as a rule.

    Raises:
      UserError: no such template, or the tokenizer lacks "<image>" or a control token of the template.
    """
    image_id = tokenizer.get_vocab().get(IMAGE)
    if image_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no {IMAGE}, without which no LLaVA can be exported")
    renderer = Renderer(tokenizer, data.template, image_token_id=image_id, system=data.system)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    tokenizer, notes = copy.deepcopy(tokenizer), []
    tokenizer.padding_side = "left"  # of prompts that are answered together
    if data.template == OWN_TEMPLATE:
        notes.append(
            f'the chat template is the tokenizer\'s own: write "{IMAGE}" and a newline before the question yourself'
        )
        if data.system is not None:
            notes.append("the chat template is the tokenizer's own: give the system message of the training yourself")
    else:
        tokenizer.chat_template, notes = chat_template(tokenizer, data.template, data.system)

    tokenizer.save_pretrained(folder)
    assert isinstance(data.media, LlavaMedia)
    _write(folder / "preprocessor_config.json", _image_processor(vision, data.media.aspect))
    _write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "patch_size": vision.patch_size,
            "vision_feature_select_strategy": "default" if vision.class_token else "full",
            "num_additional_image_tokens": int(vision.class_token),  # the class token, which "default" takes off again
        },
    )
    pad = tokenizer.pad_token_id
    transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(renderer.stop_ids),
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        do_sample=False,
    ).save_pretrained(folder)
    return notes


def chat_template(tokenizer: Any, name: str, system: str | None) -> tuple[str, list[str]]:
    """A template of `TEMPLATES` in Jinja, whose text becomes the same ids in one pass as ours do in pieces.

    Content is a string with "<image>" in it, or a list of `{"type": "image"}` and `{"type": "text", "text": ...}`. It
    writes BOS itself where the tokenizer would (a prompt rendered as text must be tokenized without special tokens).

    Args:
      tokenizer: a fast tokenizer of transformers with "<image>".
      name: of a template in `TEMPLATES`.
      system: system message of conversations that bring none. None: the template's own; "": none at all.

    Returns:
      The template, and where its ids differ, in sentences.

    Raises:
      UserError: no such template.
    """
    if name not in TEMPLATES:
        raise UserError(f'no template "{name}"; templates: {", ".join(TEMPLATES)} (config.data.template)')
    template = TEMPLATES[name]
    notes = []
    gaps = {IMAGE: _gap(tokenizer, IMAGE)}
    if tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        gaps[tokenizer.bos_token] = _gap(tokenizer, tokenizer.bos_token)
    for token, gap in gaps.items():
        if gap is None:
            notes.append(f"text that follows {token} becomes other ids than in training: this tokenizer cannot help it")
    starts = tokenizer.bos_token in gaps
    control = [*template.control, tokenizer.eos_token]
    first = _behind("part", gaps[tokenizer.bos_token], control) if starts else "part"
    lines = [
        _TEXT_OF,
        "{%- set state = namespace(text='', begun=false, system=" + _quoted(_system(template, system)) + ") -%}",
        "{%- for message in messages -%}",
        "{%- set text = text_of(message.content) -%}",
        "{%- if message.role == 'system' -%}{%- set state.system = text -%}",
        "{%- elif message.role == 'user' -%}",
        *_user(template),
        "{%- elif message.role == 'assistant' -%}",
        *_assistant(template),
        "{%- else -%}{{- raise_exception('roles: system, user, assistant; found ' ~ message.role) -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if messages[-1].role == 'assistant' -%}",
        "{%- set state.text = state.text ~ " + _expression(template.end) + " -%}",
        "{%- elif add_generation_prompt -%}",
        "{%- set state.text = state.text ~ " + _expression(template.ask) + " -%}",
        "{%- endif -%}",
        "{{- bos_token -}}" if starts else "",
        f"{{%- for part in state.text.split('{IMAGE}') -%}}",
        f"{{%- if loop.first -%}}{{{{- {first} -}}}}",
        f"{{%- else -%}}{{{{- '{IMAGE}' ~ {_behind('part', gaps[IMAGE], control)} -}}}}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    return "\n".join(line for line in lines if line), notes


_TEXT_OF = f"""\
{{%- macro text_of(content) -%}}
{{%- if content is string -%}}{{{{- content -}}}}
{{%- else -%}}
{{%- for part in content -%}}{{{{- '{IMAGE}' if part.type == 'image' else part.text -}}}}{{%- endfor -%}}
{{%- endif -%}}
{{%- endmacro -%}}"""


def _user(template: Template) -> list[str]:
    """Opening and user text; what asks for the answer comes with the answer, or at the end."""
    opening = f"({_expression(template.opening)} if state.system else {_expression(template.bare_opening)})"
    following = _expression(template.following)
    if template.captions:
        return [f"{{%- set state.text = state.text ~ '{IMAGE}' * (text.split('{IMAGE}') | length - 1) -%}}"]
    return [
        # As `place_images`: one image goes to the front, several stay.
        f"{{%- if text.split('{IMAGE}') | length == 2 -%}}",
        f"{{%- set text = ('{IMAGE}\\n' ~ text.replace('{IMAGE}', '') | trim) | trim -%}}",
        f"{{%- set state.text = state.text ~ ({following} if state.begun else {opening}) ~ text -%}}",
        "{%- else -%}",
        f"{{%- set state.text = state.text ~ ({following} if state.begun else {opening}) ~ text -%}}",
        "{%- endif -%}",
        "{%- set state.begun = true -%}",
    ]


def _assistant(template: Template) -> list[str]:
    answer = "text | trim" if template.strip_answers else "text"
    before = _expression(template.ask + template.before_answer)
    after = _expression(template.after_answer)
    return [f"{{%- set state.text = state.text ~ {before} ~ ({answer}) ~ {after} -%}}"]


def _system(template: Template, system: str | None) -> str:
    return template.system if system is None else system


def _expression(text: str) -> str:
    """A field of a template as a Jinja expression."""
    names = {"{bos}": "bos_token", "{eos}": "eos_token", "{system}": "state.system"}
    pieces = [piece for piece in re.split(r"(\{bos\}|\{eos\}|\{system\})", text) if piece]
    return "(" + (" ~ ".join(names.get(piece) or _quoted(piece) for piece in pieces) or "''") + ")"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # Jinja reads the escapes of JSON


def _behind(name: str, gap: str | None, control: list[str | None]) -> str:
    """Jinja for the text of a variable behind a special token; another token needs no gap before it, nor a space."""
    if not gap:
        return name
    bare = ", ".join(_quoted(token) for token in (" ", *control) if token)
    return f"({name} if not {name} or {name}.startswith(({bare},)) else {_quoted(gap)} ~ {name})"


def _gap(tokenizer: Any, token: str) -> str | None:
    """What to put behind a token so that the text there is tokenized as at the start of a text; None: nothing helps.

    SentencePiece puts a space in front of a text. Old Llama tokenizers do so behind every special token, newer ones
    only at the very start, where a space of our own is the same; byte-level ones never do.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    for gap in ("", " "):
        texts = [(text, text if text.startswith(" ") else gap + text) for text in _PROBES]
        if all(ids(token + behind) == ids(token) + ids(alone) for alone, behind in texts):
            return gap
    return None


def _image_processor(vision: VisionConfig, aspect: str) -> dict[str, Any]:
    size = vision.image_size
    kind = {"image_processor_type": "CLIPImageProcessor"}
    if aspect == "pad":
        kind = {"image_processor_type": "LlavaImageProcessor"}
    return kind | {
        "processor_class": "LlavaProcessor",
        "do_pad": aspect == "pad",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
    }


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
