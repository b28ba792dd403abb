"""Rewrites a trace node by node, so that every operation on tensors is a module, which may have a quantizer."""

# torch.ao has no types.
# mypy: disable-error-code="no-untyped-call"

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn import functional

from brainq_torch.models.normalizing import divide_inside, is_normal, option
from brainq_torch.models.wiring import PASSING, GridPool, Operation, WiringError, is_tensor

_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_CAT = (torch.cat, torch.concat, torch.concatenate)
_RELU = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_MEAN = (torch.mean, "mean")
_POOLS = (functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.max_pool2d)


class Rewriting:
    """A graph whose nodes are replaced one after another."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced, self.graph = traced, traced.graph
        self.used: set[str] = set()
        self.originals = dict(traced.named_modules())  # one that runs twice is replaced when its second run is written

    def run(self) -> None:
        """Rewrite every node, add the stubs, and drop what is left without a use."""
        for node in list(self.graph.nodes):
            if node.op == "call_module":
                self._module(node)
            elif node.op in ("call_function", "call_method"):
                self._function(node)
        for node in list(self.graph.nodes):
            if node.op == "call_method" and node.target == "add":
                self._fuse_relu(node)
        self._stubs()
        self.graph.eliminate_dead_code()
        for node in list(self.graph.nodes)[1:]:
            if node.op == "placeholder" and not node.users:
                self.graph.erase_node(node)
        self.graph.lint()

    def last_layer(self) -> str:
        """Return the name of the convolution or linear layer that runs last."""
        weighted = [
            str(node.target)
            for node in self.graph.nodes
            if node.op == "call_module" and isinstance(self._of(node), nn.Linear | nn.Conv2d)
        ]
        if not weighted:
            raise WiringError("the network has no convolution and no linear layer to make logits with")
        return weighted[-1]

    def _of(self, node: Any) -> Any:
        """Return the module that a node calls, None for others."""
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return self.traced.get_submodule(str(node.target)) if called else None

    def _module(self, node: fx.Node) -> None:
        name = str(node.target)
        module = self.originals[name]
        if isinstance(module, nn.BatchNorm2d) and type(module) is not nn.BatchNorm2d:
            self._split_activation(node, module)
        elif type(module) in (nn.Identity, QuantStub, DeQuantStub):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]  # the one input of an identity
            self.graph.erase_node(node)
        elif isinstance(module, nn.Linear) and type(module).__name__ == "Linear" and _is_timms(module):
            self._make_plain(name, module)  # timm's, which casts under autocast
        elif isinstance(module, nn.ReLU | nn.ReLU6):
            self._replace(node, type(module)(), node.args[0], name)
        elif type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
            self._replace(node, GridPool(module.output_size), node.args[0], name)
        elif isinstance(module, nn.MaxPool2d):
            self._pool(node, module, name)
        elif type(module) is nn.AvgPool2d:
            self._average(node, module, name)
        elif name in self.used and not module.state_dict():
            self._replace(node, copy.deepcopy(module), node.args[0], name)
        self.used.add(name)

    def _make_plain(self, name: str, layer: nn.Linear) -> None:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight, plain.bias = layer.weight, layer.bias
        self.traced.set_submodule(name, plain.train(layer.training))

    def _split_activation(self, node: fx.Node, module: Any) -> None:
        """Write timm's BatchNorm with an activation inside as the two; others are left, and named as an obstacle."""
        dropping = getattr(module, "drop", None)
        if not _is_timms(module) or not hasattr(module, "act") or type(dropping) not in (nn.Identity, type(None)):
            return
        plain = nn.BatchNorm2d(module.num_features, module.eps, module.momentum)
        plain.weight, plain.bias = module.weight, module.bias
        plain.running_mean, plain.running_var = module.running_mean, module.running_var
        plain.num_batches_tracked = module.num_batches_tracked
        self.traced.set_submodule(str(node.target), plain.train(module.training))
        activation = type(module.act)() if isinstance(module.act, nn.ReLU | nn.ReLU6) else module.act
        if not isinstance(activation, nn.Identity):
            name = self._name(f"{node.target}_act")
            self.traced.add_submodule(name, activation)
            with self.graph.inserting_after(node):
                after = self.graph.call_module(name, (node,))
            node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)

    def _function(self, node: fx.Node) -> None:
        target: Any = node.target
        arguments: Any = node.args
        source: Any = arguments[0] if arguments else None
        if target is torch._assert:
            self.graph.erase_node(node)
        elif target in _POOLS and len(node.all_input_nodes) > 1:
            self._wrap(node)  # its window is the size of a feature map
        elif target in _ADD and len(arguments) == 2 and 0 in arguments and any(map(is_tensor, arguments)):
            self._put(node, lambda: next(filter(is_tensor, arguments)))  # how sum() begins
        elif target in _ADD and len(arguments) == 2 and not node.kwargs and all(map(is_tensor, arguments)):
            self._join(node, "add", arguments)
        elif target in _CAT and option(node, 1, "dim", 0) in (1, -3) and all(map(is_tensor, source)):
            if len(source) == 1:
                self._put(node, lambda: source[0])
            else:
                self._join(node, "cat", (source, 1))
        elif target in _RELU:
            self._replace(node, nn.ReLU(), source)
        elif target is functional.relu6:
            self._replace(node, nn.ReLU6(), source)
        elif target is functional.dropout:
            self._replace(node, nn.Dropout(float(option(node, 1, "p", 0.5))), source)
        elif target is functional.adaptive_avg_pool2d:
            self._replace(node, nn.AdaptiveAvgPool2d(option(node, 1, "output_size", None)), source)
        elif target is functional.avg_pool2d:
            self._average(node, divide_inside(nn.AvgPool2d(*arguments[1:], **dict[str, Any](node.kwargs))))
        elif target is functional.max_pool2d and not node.kwargs.get("return_indices"):
            options: Any = {key: value for key, value in node.kwargs.items() if key != "return_indices"}
            self._pool(node, nn.MaxPool2d(*arguments[1:], **options))
        elif target in _MEAN:
            self._mean(node, source)
        elif is_tensor(node) and not is_normal(node):
            self._wrap(node)

    def _wrap(self, node: fx.Node) -> None:
        """Keep a function as it is, as a module."""
        kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "function")
        name = self._name(self._owned(node, kind.strip("_")))
        self.traced.add_submodule(name, Operation(node.target))
        self._put(node, lambda: self.graph.call_module(name, node.args, node.kwargs))

    def _mean(self, node: fx.Node, source: fx.Node) -> None:
        """Write a mean over height and width as a pooling."""
        axes: Any = option(node, 1, "dim", None)
        if not isinstance(axes, list | tuple) or sorted(axis % 4 for axis in axes) != [2, 3]:
            return
        name = self._name(self._owned(node, "pool"))
        self.traced.add_submodule(name, nn.AdaptiveAvgPool2d(1))
        with self.graph.inserting_before(node):
            pooled = self.graph.call_module(name, (source,))
        if option(node, 2, "keepdim", False):
            self._put(node, lambda: pooled)
        else:
            self._put(node, lambda: self.graph.call_function(torch.flatten, (pooled, 1)))

    def _join(self, node: fx.Node, method: str, arguments: tuple[Any, ...]) -> None:
        """Call a FloatFunctional, whose output gets a quantizer."""
        name = self._name(self._owned(node, method))
        self.traced.add_submodule(name, FloatFunctional())
        self._put(node, lambda: self.graph.call_method(method, (self.graph.get_attr(name), *arguments)))

    def _fuse_relu(self, node: fx.Node) -> None:
        """Let an addition that only a ReLU reads be one operation with it."""
        readers = list(node.users)
        if len(readers) == 1 and isinstance(self._of(readers[0]), nn.ReLU):
            node.target = "add_relu"
            readers[0].replace_all_uses_with(node)
            self.graph.erase_node(readers[0])

    def _pool(self, node: fx.Node, pool: nn.MaxPool2d, name: str = "") -> None:
        """Write the padding of a max pooling as zeros, where no value is below: no number is smaller there.

        Rounding up the size (ceil_mode) is the same as padding by one stride less one at the far ends, unless a window
        could lie in the padding alone, which PyTorch leaves out.
        """
        source: Any = node.args[0]
        if source.target is functional.pad and not self._is_never_negative(source):  # onnx2tf pads with -infinity
            self._wrap(source)
            source = node.args[0]
        windows = zip(pair(pool.kernel_size), pair(pool.padding), pair(pool.stride), strict=True)
        whole = not pool.ceil_mode or all(side >= padding + step for side, padding, step in windows)
        plain = pool.dilation in (1, (1, 1)) and not pool.return_indices and whole
        if not plain or not (pool.padding or pool.ceil_mode) or not self._is_never_negative(source):
            if not name or name in self.used:
                self._replace(node, copy.deepcopy(pool), source, name)
            return
        (high, wide), (down, across) = pair(pool.padding), pair(pool.stride)
        far = (across - 1, down - 1) if pool.ceil_mode else (0, 0)
        with self.graph.inserting_before(node):
            padded = self.graph.call_function(functional.pad, (source, (wide, wide + far[0], high, high + far[1])))
        self._replace(node, nn.MaxPool2d(pool.kernel_size, pool.stride), padded, name)

    def _average(self, node: fx.Node, pool: nn.AvgPool2d, name: str = "") -> None:
        """Write the padding of an average that counts it as zeros before."""
        high, wide = pair(pool.padding)
        if high + wide and pool.count_include_pad and not pool.ceil_mode:
            with self.graph.inserting_before(node):
                padded = self.graph.call_function(functional.pad, (node.args[0], (wide, wide, high, high)))
            pool = nn.AvgPool2d(pool.kernel_size, pool.stride, divisor_override=pool.divisor_override)
            self._replace(node, pool, padded, name)
        elif not name or name in self.used:
            self._replace(node, copy.deepcopy(pool), node.args[0], name)

    def _is_never_negative(self, node: Any) -> bool:
        module = self._of(node)
        if isinstance(module, nn.ReLU | nn.ReLU6):
            return True
        if node.op == "call_method" and node.target == "cat":
            return all(self._is_never_negative(member) for member in node.args[1])
        if node.op == "call_method" and node.target == "add":
            return all(self._is_never_negative(member) for member in node.args[1:])
        passes = isinstance(module, (*PASSING, nn.MaxPool2d)) or node.target is functional.pad
        return passes and self._is_never_negative(node.args[0])

    def _stubs(self) -> None:
        """Mark where integers begin and end."""
        image = next(node for node in self.graph.nodes if node.op == "placeholder")
        (end,) = (node for node in self.graph.nodes if node.op == "output")
        if not isinstance(end.args[0], fx.Node):
            raise WiringError(f"the network gives a {type(end.args[0]).__name__}; one tensor of logits is needed")
        begin, finish = self._name("quant"), self._name("dequant")
        self.traced.add_submodule(begin, QuantStub())
        self.traced.add_submodule(finish, DeQuantStub())
        with self.graph.inserting_after(image):
            quantized = self.graph.call_module(begin, (image,))
        image.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
        with self.graph.inserting_before(end):
            end.args = (self.graph.call_module(finish, (end.args[0],)),)

    def _replace(self, node: fx.Node, module: nn.Module, source: Any, name: str = "") -> None:
        """Call this module instead, under the name where it is free."""
        kind = type(module).__name__.lower()
        if name and name not in self.used:
            self.traced.set_submodule(name, module)
        else:
            name = self._name(name or self._owned(node, kind))
            self.traced.add_submodule(name, module)
        self._put(node, lambda: self.graph.call_module(name, (source,)))

    def _put(self, node: fx.Node, make: Callable[[], fx.Node]) -> None:
        with self.graph.inserting_before(node):
            made = make()
        node.replace_all_uses_with(made)
        self.graph.erase_node(node)

    def _owned(self, node: fx.Node, kind: str) -> str:
        """Return the name of a new module inside the one whose forward calls the function."""
        owner = next(reversed(node.meta.get("nn_module_stack") or {"": None}))
        return f"{owner}.{kind}" if owner else kind

    def _has(self, name: str) -> bool:
        try:
            operator.attrgetter(name)(self.traced)
        except AttributeError:
            return False
        return True

    def _name(self, wanted: str) -> str:
        """Return a name that nothing has."""
        name, number = wanted, 1
        while name in self.used or self._has(name):
            number += 1
            name = f"{wanted}_{number}"
        self.used.add(name)
        return name


def _is_timms(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.")


def pair(value: Any) -> tuple[int, int]:
    """Return height and width, where one number may stand for both."""
    return (value, value) if isinstance(value, int) else tuple(value)
