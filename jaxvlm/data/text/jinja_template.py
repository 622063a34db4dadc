"""A built-in template as the Jinja chat template of an exported tokenizer."""

from __future__ import annotations

import json
import re
from typing import Any

from jaxvlm.data.records import IMAGE
from jaxvlm.data.text.templates import Template, find_template

# What can follow an image or BOS: a newline, a word, a space.
_PROBES = ("\nWhat is it?", "What is it?", " ASSISTANT:")


def chat_template(tokenizer: Any, name: str, system: str | None) -> tuple[str, list[str]]:
    """A template of `TEMPLATES` in Jinja; its text, tokenized in one pass, gives the ids that we get in pieces.

    Content is a string with "<image>" in it, or a list of `{"type": "image"}` and `{"type": "text", "text": ...}`. It
    writes BOS itself where the tokenizer would (a prompt rendered as text must be tokenized without special tokens).

    Args:
      tokenizer: a fast tokenizer of transformers with "<image>".
      name: of a template in `TEMPLATES`.
      system: system message of conversations without one. None: the template's own; "": none at all.

    Returns:
      The template, and notes on where its ids differ.

    Raises:
      UserError: no such template.
    """
    template = find_template(name)
    notes = []
    gaps = {IMAGE: _gap(tokenizer, IMAGE)}
    if tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        gaps[tokenizer.bos_token] = _gap(tokenizer, tokenizer.bos_token)
    for token, gap in gaps.items():
        if gap is None:
            notes.append(
                f"text that follows {token} has other ids than in training; with this tokenizer no template avoids that"
            )
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
    """Opening and user text; the generation prompt comes with the answer, or at the end."""
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
    """Jinja for the text of a variable after a special token; another token needs no gap before it, nor a space."""
    if not gap:
        return name
    bare = ", ".join(_quoted(token) for token in (" ", *control) if token)
    return f"({name} if not {name} or {name}.startswith(({bare},)) else {_quoted(gap)} ~ {name})"


def _gap(tokenizer: Any, token: str) -> str | None:
    """What to put after a token so that the text there is tokenized as at the start of a text; None: nothing helps.

    SentencePiece puts a space in front of a text. Old Llama tokenizers do so after every special token, newer ones
    only at the very start, where a space of our own is the same; byte-level ones never do.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    for gap in ("", " "):
        texts = [(text, text if text.startswith(" ") else gap + text) for text in _PROBES]
        if all(ids(token + joined) == ids(token) + ids(alone) for alone, joined in texts):
            return gap
    return None
