"""Writes a built-in template as the Jinja chat template of an exported tokenizer."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from jaxvlm.data.records import IMAGE
from jaxvlm.data.text.marks import adds_bos
from jaxvlm.data.text.templates import TEMPLATES, Template, find_template

# Examples of text after an image, which begins with a newline, a word or a space.
_PROBES = ("\nWhat is it?", "What is it?", " ASSISTANT:")


def chat_template(tokenizer: Any, name: str, system: str | None, *, bos: bool = False) -> tuple[str, list[str]]:
    """Converts a template of `TEMPLATES` to Jinja.

    Tokenizing the output of the Jinja template in one pass gives the ids that `Renderer` makes from separate pieces.

    The content of a message is a string with "<image>" in it, or a list of `{"type": "image"}` and
    `{"type": "text", "text": ...}`. Images of a list that all come before its text get a newline each, as `generate`
    writes them.

    Args:
      tokenizer: a fast tokenizer of transformers.
      name: name of a template in `TEMPLATES`.
      system: system message of conversations that have none. None: the template's own; "": none at all.
      bos: whether the template writes the BOS token that the tokenizer adds to a text. A processor tokenizes a prompt
        with special tokens, and needs none in it; `apply_chat_template` of a tokenizer does so without them.

    Returns:
      The Jinja template, and a sentence for each case in which its ids differ from those of training.

    Raises:
      UserError: no such template.
    """
    template = find_template(name)
    notes = []
    gap = _gap(tokenizer, IMAGE) if IMAGE in tokenizer.get_vocab() else ""  # of a decoder alone
    if gap is None:
        notes.append(f"text after {IMAGE} gets other ids than in training: no space before it can prevent this")
    control = [*template.control, tokenizer.eos_token]
    first = "{{- part -}}"
    if bos and adds_bos(tokenizer):
        after_bos = _gap(tokenizer, tokenizer.bos_token)
        if after_bos is None:
            notes.append(f"text after {tokenizer.bos_token} gets other ids than in training: no space can prevent this")
        first = f"{{{{- bos_token ~ {_text_after('part', after_bos, control)} -}}}}"
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
        f"{{%- for part in state.text.split('{IMAGE}') -%}}",
        "{%- if loop.first -%}" + first,
        f"{{%- else -%}}{{{{- '{IMAGE}' ~ {_text_after('part', gap, control)} -}}}}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    return "\n".join(lines), notes


def recognise(tokenizer: Any) -> tuple[str, str] | None:
    """The name of a template, and the system message, of which `chat_template` made the tokenizer's chat template.

    Its ids are those of that template, which renders in pieces and adds BOS, and not those of a text in one pass.
    """
    written = tokenizer.chat_template
    found = _STATE.search(written) if isinstance(written, str) else None
    if found is None:
        return None
    system = json.loads(found["system"])
    forms = itertools.product(TEMPLATES, (False, True))
    return next(((n, system) for n, bos in forms if chat_template(tokenizer, n, system, bos=bos)[0] == written), None)


_STATE = re.compile(r"""namespace\(text='', begun=false, system=(?P<system>"(?:[^"\\]|\\.)*")\)""")

_TEXT_OF = f"""\
{{%- macro text_of(content) -%}}
{{%- if content is string -%}}{{{{- content -}}}}
{{%- else -%}}
{{%- set seen = namespace(text=false, between=false) -%}}
{{%- for part in content -%}}
{{%- if part.type != 'image' -%}}{{%- set seen.text = true -%}}
{{%- elif seen.text -%}}{{%- set seen.between = true -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- set image = '{IMAGE}' if seen.between or not seen.text else '{IMAGE}\n' -%}}
{{%- for part in content -%}}{{{{- image if part.type == 'image' else part.text -}}}}{{%- endfor -%}}
{{%- endif -%}}
{{%- endmacro -%}}"""


def _user(template: Template) -> list[str]:
    """Jinja for the opening and the user text. `Template.ask` is written with the answer, or at the end of a prompt."""
    opening = f"({_expression(template.opening)} if state.system else {_expression(template.bare_opening)})"
    following = _expression(template.following)
    if template.captions:
        return [f"{{%- set state.text = state.text ~ '{IMAGE}' * (text.split('{IMAGE}') | length - 1) -%}}"]
    return [
        # As in `place_images`: a single image moves to the front, several images keep their places.
        f"{{%- if text.split('{IMAGE}') | length == 2 -%}}",
        f"{{%- set text = ('{IMAGE}\\n' ~ text.replace('{IMAGE}', '') | trim) | trim -%}}",
        f"{{%- set state.text = state.text ~ ({following} if state.begun else {opening}) ~ text -%}}",
        "{%- else -%}",
        f"{{%- set state.text = state.text ~ ({following} if state.begun else {opening}) ~ text -%}}",
        "{%- endif -%}",
        "{%- set state.begun = true -%}",
    ]


def _assistant(template: Template) -> list[str]:
    before = _expression(template.ask + template.before_answer)
    after = _expression(template.after_answer)
    return [f"{{%- set state.text = state.text ~ {before} ~ text ~ {after} -%}}"]


def _system(template: Template, system: str | None) -> str:
    return template.system if system is None else system


def _expression(text: str) -> str:
    """Converts a field of a template to a Jinja expression."""
    names = {"{bos}": "bos_token", "{eos}": "eos_token", "{system}": "state.system"}
    pieces = [piece for piece in re.split(r"(\{bos\}|\{eos\}|\{system\})", text) if piece]
    return "(" + (" ~ ".join(names.get(piece) or _quoted(piece) for piece in pieces) or "''") + ")"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # Jinja understands the escapes of JSON


def _text_after(name: str, gap: str | None, control: list[str | None]) -> str:
    """Jinja for a variable's text after a special token. Text that starts with a token or a space gets no gap."""
    if not gap:
        return name
    bare = ", ".join(_quoted(token) for token in (" ", *control) if token)
    return f"({name} if not {name} or {name}.startswith(({bare},)) else {_quoted(gap)} ~ {name})"


def _gap(tokenizer: Any, token: str) -> str | None:
    """Finds the gap to put after a token, so that the text after it is tokenized as at the start of a text.

    SentencePiece adds a space before a text. Old Llama tokenizers also do this after every special token. Newer ones
    do it only at the very start; after a special token an explicit space gives the same ids. Byte-level ones never do.

    Returns:
      The gap, "" or " "; None if neither works.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    for gap in ("", " "):
        texts = [(text, text if text.startswith(" ") else gap + text) for text in _PROBES]
        if all(ids(token + after) == ids(token) + ids(alone) for alone, after in texts):
            return gap
    return None
