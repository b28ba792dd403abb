"""Bring a trace into one form: a function's tensor is its first argument, and what writes in place is read after it."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

_RESHAPE = (torch.reshape, "view", "reshape")
_ROWWISE = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Identity,
            functional.relu, functional.relu6, functional.dropout, torch.relu, "relu")  # fmt: skip
_TENSOR_NAMES = ("input", "tensors")
"""What torch calls the first argument of its functions."""


def normalize(traced: fx.GraphModule) -> None:
    """Rewrite a fresh trace in place; the network computes what it did."""
    for node in list(traced.graph.nodes):
        _place_first(node)
        module: Any = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(module) is nn.AvgPool2d:
            divide_inside(module)
        elif type(module) in (nn.ZeroPad2d, nn.ConstantPad2d):
            node.op, node.target, node.args = "call_function", functional.pad, (*node.args, module.padding)
            node.kwargs = {"value": getattr(module, "value", 0)}
        elif type(module) is nn.Conv2d:
            _number_padding(module)
        if _is_flatten(node, traced):
            node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (node.args[0], 1), {}
        elif node.target is functional.pad:
            _write_zeros(node)
        if _writes(node, traced):
            _read_after(node)


def option(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Return what a function is given by place or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def is_normal(node: fx.Node) -> bool:
    """Tell a flattening to vectors, or a padding with zeros, as ``normalize`` writes it."""
    plain = len(node.args) == 2 and not node.kwargs
    return plain and bool(node.target is functional.pad or (node.target is torch.flatten and node.args[1] == 1))


def _write_zeros(node: fx.Node) -> None:
    """Write a padding with zeros as two arguments: the tensor; left, right, top and bottom."""
    sides: Any = option(node, 1, "pad", None)
    kind, value = option(node, 2, "mode", "constant"), option(node, 3, "value", None) or 0
    plain = isinstance(sides, list | tuple) and len(sides) in (2, 4)
    if plain and all(isinstance(side, int) and side >= 0 for side in sides) and (kind, value) == ("constant", 0):
        node.args, node.kwargs = (node.args[0], (*sides, 0, 0)[:4]), {}
    elif node.args[2:] == () and not node.kwargs:
        node.kwargs = {"mode": kind}


def _number_padding(conv: nn.Conv2d) -> None:
    """Let a convolution say its padding in numbers, for torch.ao takes no words; not where two sides differ."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    if (left, top) == (right, bottom):
        conv.padding = (top, left)


def _is_flatten(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Tell whether a function keeps the batch and makes the rest a vector.

    ``view(-1, K)`` does where its rows are images: with any other K there would be more or fewer logits than images.
    """
    if node.target in (torch.flatten, "flatten"):
        return bool(option(node, 1, "start_dim", 0) == 1 and option(node, 2, "end_dim", -1) == -1)
    sizes = node.args[1:] if len(node.args) == 3 else node.args[1] if len(node.args) == 2 else ()
    if node.target not in _RESHAPE or not isinstance(sizes, list | tuple) or len(sizes) != 2:
        return False
    batch = isinstance(sizes[0], fx.Node) and sizes[0].args[1:] == (0,)  # x.size(0), x.shape[0]
    return bool((batch and sizes[1] == -1) or ((batch or sizes[0] == -1) and _keeps_rows(node, traced)))


def _keeps_rows(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Tell whether all that follows is computed row by row, up to the logits: then rows are images."""
    for user in node.users:
        module = traced.get_submodule(str(user.target)) if user.op == "call_module" else None
        if user.op != "output" and type(module) not in _ROWWISE and user.target not in _ROWWISE:
            return False
    return all(_keeps_rows(user, traced) for user in node.users)


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
