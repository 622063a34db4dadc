"""Nested dicts of arrays by path: {"language": {"embed": {"w": x}}} <-> {"language/embed/w": x}."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax


def paths(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a nested dict by path, such as `language/blocks/attention/q/w`; only dicts are inner nodes."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def from_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of leaves by their path, the inverse of `paths`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_paths(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """`jax.tree.map` of `function(path, leaf)` over a nested dict."""
    return jax.tree.map_with_path(lambda path, leaf: function("/".join(key.key for key in path), leaf), tree)
