"""Which chat templates (Jinja) treat what messages say alike, whatever it is, so that they need not be rendered again.

Most only print it: with text before and behind it, stripped perhaps. The text of one conversation is then that of any
other with the same roles, with the contents exchanged. `fills_in` proves that from the template's syntax tree.
"""

from __future__ import annotations

import enum

import jinja2
from jinja2 import nodes

_ROLES = ("system", "user", "assistant")


@enum.unique
class _Kind(enum.Enum):
    """What is known of a value in every conversation."""

    SAME = "depends on the roles only"
    TRUE = "true"
    FALSE = "false"
    UNDEFINED = "undefined"
    ROLE = "a message's role"
    CONTENT = "text with a content in it"
    MAYBE_CONTENT = "text with a content in it, or what depends on the roles only"
    MESSAGE = "a message"
    MAYBE_MESSAGE = "a message, or what depends on the roles only"
    MESSAGES = "messages, or undefined"
    LOOP = "the variable of a loop"


_SAME = {_Kind.SAME, _Kind.TRUE, _Kind.FALSE, _Kind.UNDEFINED, _Kind.ROLE}
_CONTENT = {_Kind.CONTENT, _Kind.MAYBE_CONTENT}
_MESSAGE = {_Kind.MESSAGE, _Kind.MAYBE_MESSAGE}
# Of text, whatever it says.
_TESTS_OF_TEXT = {"defined": True, "string": True, "iterable": True, "sequence": True} | dict.fromkeys(
    ("undefined", "none", "mapping", "number", "boolean"), False
)
_LOOP_ATTRIBUTES = ("first", "last", "index", "index0", "revindex", "revindex0", "length")


def fills_in(source: str, *, stripped: bool) -> bool:
    """Whether a chat template gives, for all conversations of the same roles, the same text round their contents.

    Args:
      source: the template. It gets messages as dicts of `role` (system, user or assistant) and `content`, a text that
        is not empty.
      stripped: whether contents have no white space at their ends, so that the template may strip them.

    Returns:
      False: it looks at a content, or it might (what is done with one in a macro, by a filter or through a namespace
      is not followed).
    """
    try:
        # The syntax transformers accepts, but for its {% generation %}.
        template = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
        _Walk(stripped).template(template)
    except (_NotFollowedError, jinja2.TemplateError, RecursionError):
        return False
    return True


class _NotFollowedError(Exception):
    """A content may be looked at here."""


class _Walk:
    """Goes through all that can be reached, with what is known of each variable wherever it is read."""

    def __init__(self, stripped: bool):
        self._stripped = stripped
        self._names = {"messages": _Kind.MESSAGES, "loop": _Kind.LOOP}

    def template(self, template: nodes.Template) -> None:
        before = None
        while before != self._names:  # a variable can be read before the place at which it is set
            before = dict(self._names)
            self._walk(template.body)

    def _walk(self, body: list[nodes.Node]) -> None:
        for node in body:
            match node:
                case nodes.Output():
                    for part in node.nodes:
                        self._expect(part, _SAME | _CONTENT)
                case nodes.Assign(target=nodes.Name(name=name)):
                    # It may not be set yet where it is read.
                    self._names[name] = _join(self._names.get(name, _Kind.UNDEFINED), self._kind(node.node))
                case nodes.Assign(target=nodes.NSRef()):
                    self._expect(node.node, _SAME)
                case nodes.If():
                    self._walk_if(node)
                case nodes.For(recursive=False):
                    self._walk_for(node)
                case nodes.Break() | nodes.Continue():
                    pass
                case _:
                    raise _NotFollowedError

    def _walk_if(self, node: nodes.If) -> None:
        for branch in (node, *node.elif_):
            taken = _truth(self._kind(branch.test))
            if taken is not False:
                self._walk(branch.body)
            if taken is True:
                return
        self._walk(node.else_)

    def _walk_for(self, node: nodes.For) -> None:
        over = self._kind(node.iter)
        if over is _Kind.MESSAGES and isinstance(node.target, nodes.Name):
            inside = {node.target.name: _Kind.MESSAGE}
        elif over in _SAME:
            inside = {name.name: _Kind.SAME for name in _names_in(node.target)}
        else:
            raise _NotFollowedError
        if over is not _Kind.UNDEFINED:
            outside = {name: self._names.get(name) for name in inside}
            self._names |= inside
            if node.test is not None:
                self._expect(node.test, _SAME)
            self._walk(node.body)
            for name, kind in outside.items():
                self._names.pop(name)
                if kind is not None:
                    self._names[name] = kind
        self._walk(node.else_)

    def _expect(self, node: nodes.Node, kinds: set[_Kind]) -> _Kind:
        kind = self._kind(node)
        if kind not in kinds:
            raise _NotFollowedError
        return kind

    def _kind(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.Const(value=bool(value)):
                return _boolean(value)
            case nodes.Name(name=name):
                return self._names.get(name, _Kind.SAME)
            case nodes.Getattr(node=of, attr=key) | nodes.Getitem(node=of, arg=nodes.Const(value=key)):
                return self._part(self._kind(of), key)
            case nodes.Getitem(node=of, arg=nodes.Neg(node=nodes.Const(value=int(key)))):
                return self._part(self._kind(of), -key)
            case nodes.Getitem(node=of, arg=nodes.Slice() as part) if self._kind(of) is _Kind.MESSAGES:
                self._expect_same_below(part)
                return _Kind.MESSAGES
            case nodes.Not():
                taken = _truth(self._kind(node.node))
                return _Kind.SAME if taken is None else _boolean(not taken)
            case nodes.And() | nodes.Or():
                left = self._kind(node.left)
                taken = _truth(left)
                if taken is isinstance(node, nodes.Or):
                    return left
                return self._kind(node.right) if taken is not None else _join(left, self._kind(node.right))
            case nodes.CondExpr():
                taken = _truth(self._kind(node.test))
                if taken is True:
                    return self._kind(node.expr1)
                other = _Kind.UNDEFINED if node.expr2 is None else self._kind(node.expr2)
                return other if taken is False else _join(self._kind(node.expr1), other)
            case nodes.Add() | nodes.Concat():
                parts = [node.left, node.right] if isinstance(node, nodes.Add) else node.nodes
                kinds = {self._expect(part, _SAME | _CONTENT) for part in parts}
                return next((kind for kind in (_Kind.CONTENT, _Kind.MAYBE_CONTENT) if kind in kinds), _Kind.SAME)
            case (
                nodes.Filter(name="trim", node=nodes.Expr() as of)
                | nodes.Call(node=nodes.Getattr(node=of, attr="strip" | "lstrip" | "rstrip"))
            ) if not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs):
                kind = self._expect(of, _SAME | _CONTENT if self._stripped else _SAME)
                return kind if kind in _CONTENT else _Kind.SAME
            case nodes.Filter(name="length" | "count", node=nodes.Expr() as of) if self._kind(of) is _Kind.MESSAGES:
                return _Kind.SAME
            case nodes.Test(name=name) if name in _TESTS_OF_TEXT:
                return self._test(self._kind(node.node), name)
            case nodes.Compare(expr=left, ops=[nodes.Operand(op=op, expr=right)]):
                return self._compare(left, op, right)
            case _:
                self._expect_same_below(node)
                return _Kind.SAME

    def _expect_same_below(self, node: nodes.Node) -> None:
        for child in node.iter_child_nodes():
            self._expect(child, _SAME)

    def _part(self, of: _Kind, key: object) -> _Kind:
        """Of an attribute or item."""
        if of in _MESSAGE and key == "role":
            return _Kind.ROLE
        if of in _MESSAGE and key == "content":
            return _Kind.CONTENT if of is _Kind.MESSAGE else _Kind.MAYBE_CONTENT
        if of in _MESSAGE and isinstance(key, str) and not hasattr(dict, key):
            return _Kind.UNDEFINED
        if of is _Kind.MESSAGES and isinstance(key, int):
            return _Kind.MAYBE_MESSAGE
        if of in _SAME or of is _Kind.LOOP and key in _LOOP_ATTRIBUTES:
            return _Kind.SAME
        raise _NotFollowedError

    def _test(self, of: _Kind, name: str) -> _Kind:
        if of is _Kind.CONTENT:
            return _boolean(_TESTS_OF_TEXT[name])
        if of is _Kind.UNDEFINED and name in ("defined", "undefined"):
            return _boolean(name == "undefined")
        return _Kind.SAME  # of whatever kind, for no test here looks into it

    def _compare(self, left: nodes.Expr, op: str, right: nodes.Expr) -> _Kind:
        kinds = self._kind(left), self._kind(right)
        equal = None
        if op in ("in", "notin") and kinds[1] in _MESSAGE and isinstance(left, nodes.Const):
            equal = False if left.value not in ("role", "content") else None
        elif op in ("eq", "ne") and kinds[0] in _CONTENT and isinstance(right, nodes.Const) and not right.value:
            equal = False if kinds[0] is _Kind.CONTENT else None
        elif not _SAME.issuperset(kinds):
            raise _NotFollowedError
        elif kinds[0] is _Kind.ROLE and op in ("eq", "ne", "in", "notin"):
            others = [right] if op in ("eq", "ne") else getattr(right, "items", [None])
            if all(isinstance(other, nodes.Const) and other.value not in _ROLES for other in others):
                equal = False
        return _Kind.SAME if equal is None else _boolean(equal is (op in ("eq", "in")))


def _names_in(target: nodes.Node) -> list[nodes.Name]:
    return [target] if isinstance(target, nodes.Name) else list(target.find_all(nodes.Name))


def _boolean(value: bool) -> _Kind:
    return _Kind.TRUE if value else _Kind.FALSE


def _truth(kind: _Kind) -> bool | None:
    """Whether it is true, or None if that depends on the roles."""
    if kind in (_Kind.TRUE, _Kind.CONTENT):
        return True
    return False if kind in (_Kind.FALSE, _Kind.UNDEFINED) else None


def _join(one: _Kind, other: _Kind) -> _Kind:
    """Of what is one or the other."""
    both = {one, other}
    if len(both) == 1:
        return one
    if both <= _SAME:
        return _Kind.SAME
    if both <= _SAME | _CONTENT:
        return _Kind.MAYBE_CONTENT
    if both <= _SAME | _MESSAGE:
        return _Kind.MAYBE_MESSAGE
    if both == {_Kind.MESSAGES, _Kind.UNDEFINED}:
        return _Kind.MESSAGES
    raise _NotFollowedError
