"""Fuse, fake-quantize, freeze: pure functions around torch.ao's eager mode.

torch marks this API as deprecated in favour of torchao's pt2e flow (https://github.com/pytorch/ao/issues/2259). It
stays here because fusing by name and modules that can be folded are what carries every learned scale into the files;
torch is capped below the release that may drop it, and the warning is answered in ``_answered_deprecation``.
"""

# torch.ao has no types.
# mypy: disable-error-code="no-untyped-call"

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.ao.nn.intrinsic as fused
import torch.ao.nn.qat as qat
from torch import Tensor, nn
from torch.ao.quantization import QConfig, QuantStub, fuse_modules_qat
from torch.ao.quantization import prepare_qat as insert_quantizers

from brainq_torch.models.obstacles import raise_for_obstacles
from brainq_torch.models.wiring import GridPool, fuse_list, shared_activation_groups
from brainq_torch.quant.encoding import INPUT_ENCODING
from brainq_torch.quant.fake_quantize import ActivationQuantizer, MeanQuantizer, WeightQuantizer
from brainq_torch.quant.layers import (
    RELU6_CEILING,
    FoldedConvBn2d,
    FoldedConvBnReLU2d,
    Layer,
    LimitedConvReLU2d,
    LimitedLinearReLU,
    PrepareError,
    activation_quantizers,
    fold,
    freeze_batchnorm,
    freeze_observers,
    is_fake_quantized,
    running_order,
    scheme_of,
    trace,
    weighted_layers,
)
from brainq_torch.quant.lower import fold_batchnorms, lower_average_pools, lower_batchnorms
from brainq_torch.quant.scheme import LAYER_KINDS, Scheme, encode_weight, largest_integer, quantize_bias, raise_for_bias

_MODULES: dict[type[nn.Module], type[nn.Module]] = {
    fused.ConvBn2d: FoldedConvBn2d,
    fused.ConvBnReLU2d: FoldedConvBnReLU2d,
    fused.ConvReLU2d: LimitedConvReLU2d,
    fused.LinearReLU: LimitedLinearReLU,
    nn.Conv2d: qat.Conv2d,
    nn.Linear: qat.Linear,
}
"""What a float module becomes while it is fake-quantized."""


def prepare_qat(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Return a fake-quantized copy of a float network, in training mode, ready for fine-tuning.

    BatchNorms that cannot be folded and average poolings become depthwise convolutions, a BatchNorm1d goes into its
    linear layer, the modules of ``fuse_list`` become one; each of them, of ``shared_activation_groups`` and
    FloatFunctional gets an activation quantizer, each weight its own. The input's is fixed at scale 1/128, zero point
    0. Raises PrepareError, and WiringError naming the layers that integers cannot carry.
    """
    _check(model)
    folded = fold_batchnorms(lower_batchnorms(model), nn.BatchNorm1d)
    prepared: Any = lower_average_pools(folded).train()
    groups, fusions = shared_activation_groups(prepared), fuse_list(prepared)
    limited = _without_relu6(prepared, fusions)
    make_activation = partial(ActivationQuantizer, scheme.range_averaging, scheme.exact_scales)

    def make_weight(factory_kwargs: Any = None) -> WeightQuantizer:  # torch.ao's linear passes dtype and device
        return WeightQuantizer(scheme.largest_weight, scheme.exact_scales)

    with _answered_deprecation():
        prepared = fuse_modules_qat(prepared, fusions)
        prepared.qconfig = QConfig(activation=make_activation, weight=make_weight)
        for module in prepared.modules():
            if isinstance(module, QuantStub):
                module.qconfig = QConfig(activation=partial(make_activation, fixed=INPUT_ENCODING), weight=make_weight)
        insert_quantizers(prepared, mapping=_MODULES, inplace=True)
    for module in prepared.modules():
        quantizer = getattr(module, "weight_fake_quant", None)
        if quantizer is not None:
            quantizer.size_to(fold(module)[0])
        if isinstance(module, GridPool):
            module.strict = True
    for name in limited:
        prepared.get_submodule(name).ceiling = RELU6_CEILING
    _share(prepared, groups, scheme)
    prepared.quantization_scheme, prepared.equalization = scheme, {}
    _drop_idle(prepared)
    if scheme.exceptions:
        _set_weight_bits(prepared, scheme)
    result: nn.Module = prepared
    return result


def rebuild(model: nn.Module, scheme_json: Mapping[str, Any]) -> nn.Module:
    """Return the structure that ``prepare_qat`` made of a fresh network, in eval mode, for ``load_state_dict``."""
    return prepare_qat(model, Scheme.from_json(dict(scheme_json))).eval()


def check_finalized(model: nn.Module) -> None:
    """Raise PrepareError for a float network, or a fake-quantized one that can still move: call ``finalize`` on it."""
    scheme_of(model)
    moving = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer | WeightQuantizer) and module.observing
    ]
    if model.training or moving:
        what = (
            f"{len(moving)} quantizers still observe ({', '.join(moving[:3])})" if moving else "it is in training mode"
        )
        raise PrepareError(f"the network is not finalized: {what}; call brainq_torch.quant.prepare.finalize(model)")


def set_activation_ranges(model: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Replace activations' (smallest, largest) values but the input's. Raises PrepareError for a bad name or range."""
    quantizers = activation_quantizers(model)
    for name, (low, high) in ranges.items():
        if name not in quantizers:
            raise PrepareError(f"no activation is named {name!r}; there are {', '.join(quantizers)}")
        if not -torch.inf < low <= high < torch.inf:
            raise PrepareError(f"the range of {name} is [{low}, {high}]; both ends must be finite and in order")
        quantizers[name].low.fill_(low)
        quantizers[name].high.fill_(high)
    for quantizer in quantizers.values():
        quantizer.refresh()


@torch.no_grad()
def finalize(model: nn.Module) -> None:
    """Make a fake-quantized network ready to be saved and exported, in place: nothing in it moves after this.

    Recomputes each weight scale from the final folded weights, raises those of channels so weak that their bias would
    not fit int32, and rounds biases to the int32 grid: torch then computes what the integers do. Raises PrepareError.
    """
    model.eval()
    freeze_batchnorm(model)
    quantizers = activation_quantizers(model)
    unseen = [name for name, one in quantizers.items() if not one.fixed and all(m.low.isinf() for m in one.group)]
    if unseen:
        raise PrepareError(f"no range was observed or set for {', '.join(unseen)}; train or calibrate first")
    freeze_observers(model)
    scheme = scheme_of(model)
    for layer in weighted_layers(model):
        if not (torch.isfinite(layer.weight).all() and torch.isfinite(layer.bias).all()):
            raise PrepareError(f"layer {layer.name} has weights or biases that are not finite; training diverged")
        own = encode_weight(layer.weight, layer.largest, scheme.exact_scales)
        _settle_bias(model, layer, own, layer.bias)


@torch.no_grad()
def move_bias(model: nn.Module, layer: Layer, shift: Tensor) -> None:
    """Add (O,) to the bias of a layer of a finalized network, in place; one without a bias is left as it is."""
    module: Any = layer.module
    bias = layer.bias + shift
    if isinstance(module, FoldedConvBn2d):
        module.bn.bias.add_(shift)
    if isinstance(module, FoldedConvBn2d) or module.bias is not None:
        _settle_bias(model, layer, layer.weight_scale, bias)


def _settle_bias(model: nn.Module, layer: Layer, scale: Tensor, bias: Tensor) -> None:
    """Settle a layer's weight on this scale (O,), raised where the bias (O,) needs it, and the bias on its grid."""
    scale, bias_scale, rounded = _fit_bias(model, layer, scale, bias)
    module: Any = layer.module
    module.weight_fake_quant.settle(scale, bias_scale)
    if not isinstance(module, FoldedConvBn2d) and module.bias is not None:
        module.bias.copy_(rounded)  # a folded bias is rounded whenever it is computed


def _fit_bias(model: nn.Module, layer: Layer, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight's scale (O,), raised where the bias (O,) needs it, the bias's own, and the bias on its grid."""
    input_scale = activation_quantizers(model)[layer.source].encoding.scale
    scale = raise_for_bias(scale, bias, input_scale, scheme_of(model).largest_bias)
    steps, bias_scale = quantize_bias(bias, input_scale, scale)
    return scale, bias_scale, steps * bias_scale


@torch.no_grad()
def settle_layer(model: nn.Module, layer: Layer, weight: Tensor, scale: Tensor, bias: Tensor) -> None:
    """Give a layer of a finalized network, in place, these whole numbers, scale (O,) and bias (O,) from now on.

    Its BatchNorm becomes the identity, as it is folded already; the bias is rounded to the int32 grid.
    Raises ValueError for what is no integer that the layer's bits can hold.
    """
    if not bool((weight == weight.round()).all() and (weight.abs() <= layer.largest).all()):
        raise ValueError(f"{layer.name}: weights must be integers of at most {layer.largest}")
    scale, bias_scale, rounded = _fit_bias(model, layer, scale, bias)
    module: Any = layer.module
    module.weight.copy_(weight * scale.reshape(-1, *[1] * (weight.dim() - 1)))
    if isinstance(module, FoldedConvBn2d):
        norm: Any = module.bn
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.bias.copy_(rounded)
    if module.bias is not None:
        module.bias.copy_(torch.zeros_like(bias) if isinstance(module, FoldedConvBn2d) else rounded)
    module.weight_fake_quant.settle(scale, bias_scale)


def _set_weight_bits(model: nn.Module, scheme: Scheme) -> None:
    """Give the exceptions of a scheme their bits."""
    _, sources = trace(model)
    names = list(sources)
    unknown = scheme.exceptions.keys() - {*names, *LAYER_KINDS}
    if unknown:
        raise PrepareError(f"no layer is named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name in names:
        module: Any = model.get_submodule(name)
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        tests = {"first": name == names[0], "last": name == names[-1], "depthwise": depthwise}
        bits = scheme.bits_of(name, [kind for kind, holds in tests.items() if holds])
        module.weight_fake_quant.largest = largest_integer(bits)


def _drop_idle(model: nn.Module) -> None:
    """Remove the quantizers of modules that never run, such as the adders of blocks without a shortcut."""
    running = set(running_order(model))
    for name in activation_quantizers(model).keys() - running:
        module: Any = model.get_submodule(name)
        module.activation_post_process = nn.Identity()


def _share(model: nn.Module, groups: list[list[str]], scheme: Scheme) -> None:
    """Let the outputs of each group's modules have one encoding; poolings, which have no quantizer yet, get one."""
    for names in groups:
        modules: list[Any] = [model.get_submodule(name) for name in names]
        for module in modules:
            if not hasattr(module, "activation_post_process"):
                kind = MeanQuantizer if isinstance(module, nn.AdaptiveAvgPool2d) else ActivationQuantizer
                module.add_module("activation_post_process", kind(scheme.range_averaging, scheme.exact_scales))
                module.register_forward_hook(_quantize_output)
        members = [module.activation_post_process for module in modules]
        for member in members:
            member.group = members


def _quantize_output(module: Any, inputs: Any, output: Tensor) -> Tensor:
    result: Tensor = module.activation_post_process(output)
    return result


def _without_relu6(model: nn.Module, fusions: list[list[str]]) -> list[str]:
    """Put ReLU, which torch.ao fuses, where ReLU6 ends a group, in place; return the groups' first modules."""
    ending = [group for group in fusions if isinstance(model.get_submodule(group[-1]), nn.ReLU6)]
    for group in ending:
        model.set_submodule(group[-1], nn.ReLU())
    return [group[0] for group in ending]


def _check(model: nn.Module) -> None:
    if is_fake_quantized(model):
        raise PrepareError(f"{type(model).__name__} is fake-quantized already; prepare the float network it came from")
    if not any(isinstance(module, QuantStub) for module in model.modules()):
        raise PrepareError(f"{type(model).__name__} has no QuantStub; name it as model.name, which puts it in")
    raise_for_obstacles(model)


@contextmanager
def _answered_deprecation() -> Iterator[None]:
    """Keep torch's deprecation notice out of every command's output: this module's docstring is the answer to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated", category=DeprecationWarning)
        yield
