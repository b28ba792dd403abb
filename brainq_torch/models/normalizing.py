"""Bring a trace into one form: a function's tensor is its first argument, and what writes in place is read after it."""

import operator
from typing import Any

import torch
from torch import fx, nn

_TENSOR_NAMES = ("input", "tensors")
"""What torch calls the first argument of its functions."""


def normalize(traced: fx.GraphModule) -> None:
    """Rewrite a fresh trace in place; the network computes what it did."""
    for node in list(traced.graph.nodes):
        _place_first(node)
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(module) is nn.AvgPool2d:
            divide_inside(module)
        if _writes(node, traced):
            _read_after(node)


def divide_inside(pool: nn.AvgPool2d) -> nn.AvgPool2d:
    """Let an average that is rounded up without padding say so as ONNX Runtime reads it: by what lies in the image."""
    if pool.ceil_mode and pool.padding in (0, (0, 0)):
        pool.count_include_pad = False
    return pool


def _place_first(node: fx.Node) -> None:
    """Give a function or module by place what it was given by name: ``relu(input=x)``, ``cat(tensors=[x, y])``."""
    if node.op not in ("call_function", "call_module") or node.args:
        return
    options = dict(node.kwargs)
    first = next((name for name in _TENSOR_NAMES if name in options), None)
    if first is not None:
        arguments = [options.pop(first)]
        if node.target is torch.add and "other" in options:
            arguments.append(options.pop("other"))
        node.args, node.kwargs = tuple(arguments), options


def _writes(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Tell what changes its own input."""
    if node.op == "call_module":
        module: Any = traced.get_submodule(str(node.target))
        return bool(getattr(module, "inplace", False)) and not isinstance(module, nn.Dropout | nn.Dropout2d)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_function":
        in_place = getattr(operator, name, None) is node.target and name in ("iadd", "isub", "imul", "itruediv")
        return in_place or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
    return False


def _read_after(node: fx.Node) -> None:
    """Let whatever reads the changed tensor later read what this node makes, so that it need not be in place."""
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node):
        return
    later, following = set[fx.Node](), node.next
    while following.op != "root":
        later.add(following)
        following = following.next
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)
