import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxvlm.data.text.chat_template import fills_in

ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
EACH = "{{% for m in messages %}}{}{{% endfor %}}"


def render(source, roles, contents, **settings_):
    """What it writes, or None for an error, which must not depend on the contents either."""
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    try:
        return ENVIRONMENT.from_string(source).render(messages=messages, eos_token="</s>", tools=None, **settings_)
    except (jinja2.TemplateError, TypeError):
        return None


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m['content'] ~ eos_token }}{% endfor %}",
        "{% for m in messages[1:] if m.role != 'system' %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}",
        "{{ messages[0].content }}{{ messages[-1]['content'] }}{{ messages | length }}",
        # Never true of a text, or of a message with a role and a content: what comes after is not reached.
        EACH.format("{% if m.role == 'tool' %}{{ m.content | tojson }}{% endif %}"),
        EACH.format("{% if m.role in ['tool', 'ipython'] or 'tool_calls' in m %}{{ m.content | tojson }}{% endif %}"),
        EACH.format("{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"),
        EACH.format("{% if m.tool_calls %}{{ m.content | tojson }}{% elif m.content %}{{ m.content }}{% endif %}"),
        EACH.format("{% for call in m.tool_calls %}{{ m.content | tojson }}{% endfor %}"),
        EACH.format("{% if m.content is none or m.content == '' %}{{ m.content | tojson }}{% endif %}"),
        EACH.format("{{ m.content | tojson if m.name is defined else m.content }}"),
        "{% set n = namespace(a=0) %}" + EACH.format("{% set n.a = n.a + 1 %}{{ n.a }}{{ m.content }}{% break %}"),
        # Llama 2, but for its stripping.
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
        "{% if loop.first and system != false %}{% set text = '<<SYS>>' + system + m.content %}"
        "{% else %}{% set text = m.content %}{% endif %}{{ text }}{% endfor %}",
    ],
)
def test_a_template_that_only_prints(source):
    assert fills_in(source, stripped=False) and fills_in(source, stripped=True)


@pytest.mark.parametrize(
    "body", ["{{ m.content | trim }}", "{{ (' ' + m.content).strip() }}", "{% set t = m.content.rstrip() %}{{ t }}"]
)
def test_a_template_that_strips(body):
    assert fills_in(EACH.format(body), stripped=True) and not fills_in(EACH.format(body), stripped=False)


@pytest.mark.parametrize(
    "source",
    [
        *map(
            EACH.format,
            [
                "{{ m.content.split('</think>')[-1] }}",
                "{{ m.content | upper }}{{ m }}",
                "{{ m.content.strip('a') }}",
                "{{ m.content.strip(*tools) }}",
                "{{ m.content[0] }}{{ m.content[1:] }}",
                "{{ m.content * 2 }}{{ '%s' % m.content }}",
                "{{ m.content | length }}",
                "{% for c in m.content %}{{ c }}{% endfor %}",
                "{% if 'x' in m.content %}{% endif %}",
                "{% if m.content == 'x' %}{% endif %}",
                "{% if m.content == m.role %}{% endif %}",
                "{{ {'user': 1}[m.content] }}",
                "{{ m.get('content') }}{{ m.items() }}",
                "{{ m | tojson }}",
                "{{ [m.content] | join }}",
                "{{ loop.previtem.content | upper }}",
                "{{ (loop | attr('nextitem')).content }}",
                "{{ loop.changed(m.content) }}",
                "{% set t %}{{ m.content }}{% endset %}{{ t | upper }}",
                "{% set t = m.content %}{{ t | upper }}",
                "{% set n.t = m.content %}",
                "{{ namespace(t=m.content).t | upper }}",
                "{% set t = m %}{{ t.content | upper }}",
                "{% if m.role == 'tool' %}{% else %}{{ m.content | upper }}{% endif %}",
                "{% if m.role != 'tool' %}{{ m.content | upper }}{% endif %}",
                "{% if x is defined %}{% else %}{{ m.content | upper }}{% endif %}{% set x = m.content %}",
                "{% filter upper %}{{ m.content }}{% endfilter %}",
            ],
        ),
        "{{ messages }}{{ messages | tojson }}",
        "{{ messages[0] }}",
        "{{ messages[0].content | upper }}",
        "{{ messages | map(attribute='content') | join }}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "{% for m in messages if m.content != 'x' %}{{ m.content }}{% endfor %}",
        "{% if messages[1].content is defined %}{% else %}{{ messages[0].content | upper }}{% endif %}",
        "{% macro say(t) %}{{ t }}{% endmacro %}{{ say(messages[0].content) }}",
        "{% for m in messages recursive %}{{ m.content }}{% endfor %}",
        "{% generation %}{% endgeneration %}",
        "{{ messages[-'x'] }}",
        f"{{{{ {'+'.join(['messages[0].content'] * 5000)} }}}}",
        "{% if %}",
    ],
)
def test_a_template_that_looks_or_is_not_followed(source):
    assert not fills_in(source, stripped=True) and not fills_in(source, stripped=False)


# Any template

TEXTS = st.sampled_from(
    ["m.content", "messages[0].content", "messages[-1]['content']", "m.role", "m.name", "t", "u", "'x'"]
)


def larger(texts):
    conditions = st.builds(
        str.format,
        st.sampled_from(
            [
                "{0}",
                "not {0}",
                "{0} == {1}",
                "{0} != {1}",
                "{0} == ''",
                "{0} == false",
                "{0} in {1}",
                "{0} in ['user', 'x']",
                "{0} not in ['tool']",
                "{0} == 'tool'",
                "{0} is string",
                "{0} is defined",
                "{0} is none",
                "'content' in m",
                "'name' in m",
                "m.role == 'user'",
                "loop.first",
            ]
        ),
        texts,
        texts,
    )
    forms = [
        "({0} + {1})",
        "({0} ~ {1})",
        "({0} or {1})",
        "({0} and {1})",
        "({0} | trim)",
        "{0}.strip()",
        "({0} | upper)",
    ]
    return st.builds(str.format, st.sampled_from(forms), texts, texts) | st.builds(
        "({1} if {0} else {2})".format, conditions, texts, texts
    )


EXPRESSIONS = st.recursive(TEXTS, larger, max_leaves=6)


def blocks(body):
    return st.lists(
        st.builds("{{% if {0} %}}{1}{{% else %}}{2}{{% endif %}}".format, EXPRESSIONS, body, body)
        | st.builds("{{% for m in messages[{0}:] %}}{1}{{% endfor %}}".format, st.integers(0, 1), body)
        | st.builds("{{% for c in {0} %}}{1}{{% endfor %}}".format, EXPRESSIONS, body)
        | st.builds("{{% set {0} = {1} %}}".format, st.sampled_from("tu"), EXPRESSIONS),
        min_size=1,
        max_size=3,
    ).map("".join)


PRINTED = st.builds("{{{{ {0} }}}}".format, EXPRESSIONS)
TEMPLATES = st.builds(EACH.format, st.recursive(PRINTED, blocks, max_leaves=5))
SPECIAL = ["x", "user", "content", "tool", "0", "False", "{0}", "A b", "X"]


@settings(max_examples=1500)
@given(
    TEMPLATES,
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.sampled_from(SPECIAL)), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_what_is_filled_in_is_what_is_rendered(source, turns, stripped):
    if not fills_in(source, stripped=stripped):
        return
    roles, contents = zip(*turns, strict=True)
    if not stripped:
        contents = [f" {text}\n" for text in contents]
    form = render(source, roles, [f"\ufdd2{index}\ufdd3" for index in range(len(roles))])
    if form is not None:
        for index, text in enumerate(contents):
            form = form.replace(f"\ufdd2{index}\ufdd3", text)
    assert render(source, roles, contents) == form
