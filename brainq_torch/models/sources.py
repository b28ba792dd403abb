"""Networks that others define, built by name: torchvision's, timm's, and any class on Python's path."""

import importlib
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

ALLOWED = "torchvision:NAME (torchvision:resnet18), timm:NAME (timm:mobilenetv4_conv_small) and package.module:Class"


def build_source(name: str, class_count: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network that a name with a colon stands for, as its authors wrote it, with random weights.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME`` or ``package.module:Class``.
        class_count: Length of its logits; all three are told it as ``num_classes``.
        arguments: More of the constructor's own. timm's ``reparameterize: true`` merges the parallel branches of
            networks such as RepVGG into the convolutions that are deployed.

    Raises:
        ValueError: Nothing is built under that name, or not with these arguments.
    """
    source, _, rest = name.partition(":")
    build = {"torchvision": _from_torchvision, "timm": _from_timm}.get(source)
    constructor = build(rest) if build else _from_class(source, rest)
    try:
        model = constructor(num_classes=class_count, **arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{name} is not built with num_classes={class_count}, {dict(arguments)}: {error}; its constructor must "
            "take num_classes; --model.arguments '{...}' gives others, '{}' none"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} makes a {type(model).__name__}; a torch.nn.Module is needed: {ALLOWED}")
    return model


def _from_torchvision(name: str) -> Callable[..., Any]:
    from torchvision.models import get_model, list_models  # over a second, and our own networks are built without

    if name.lower() not in (known := list_models()):
        raise ValueError(_name_similar("torchvision", name, known))

    def build(**arguments: Any) -> nn.Module:
        model: nn.Module = get_model(name, weights=None, **arguments)
        return model

    return build


def _from_timm(name: str) -> Callable[..., Any]:
    timm = import_timm()
    if not timm.is_model(name):
        raise ValueError(_name_similar("timm", name, timm.list_models()))

    def build(reparameterize: bool = False, **arguments: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return timm.utils.reparameterize_model(model) if reparameterize else model

    return build


def _name_similar(library: str, name: str, known: list[str]) -> str:
    close = ", ".join(get_close_matches(name, known, 5)) or "none alike"
    return f"{library} has no network {name!r}; similar names: {close}"


def import_timm() -> Any:
    """Import timm, an optional extra. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError("timm is not installed: in the checkout, pip install -e '.[timm]'") from error


def _from_class(module: str, name: str) -> Callable[..., Any]:
    """Import a class; the working directory is searched too, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no class {module}:{name} ({error}); allowed are {ALLOWED}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        is_a = f"{module}:{name} is a {type(found).__name__}"
        raise ValueError(f"{is_a}, no subclass of torch.nn.Module; allowed are {ALLOWED}")
    return found
