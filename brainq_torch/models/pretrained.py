"""Published weights into our networks: explicit keys, a shape check, the RGB normalisation folded into the stem."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, get_model_weights

from brainq_torch.console import name_first
from brainq_torch.files import load_tensors, weight_faults
from brainq_torch.models import ModelOptions, head_name
from brainq_torch.models.sources import import_timm
from brainq_torch.models.wiring import IMAGE, fuse_list, read_steps
from brainq_torch.run_files import BrainqError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""torchvision's input normalisation, per RGB channel, of pixel / 255."""


class PretrainedError(BrainqError):
    """Published weights that cannot be read, fetched, or put into the network."""


def load_pretrained(model: nn.Module, options: ModelOptions) -> None:
    """Put weights from a file or its authors' into a network, but the head's. Raises PretrainedError."""
    if options.pretrained == "none":
        return
    mean, std = _normalisation(options.name)
    state = _download(options) if options.pretrained == "imagenet" else read_weights(Path(options.pretrained))
    copy_mapped(model, fold_rgb_stem(model, state, mean, std))


def fold_rgb_stem(
    model: nn.Module,
    state: dict[str, Tensor],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> dict[str, Tensor]:
    """Fold an RGB normalisation into first convolutions that take one channel, (pixel - 128) / 128.

    For a grey pixel p the RGB network sees (p / 255 - mean_c) / std_c in channel c. With u = (p - 128) / 128 that is u
    * 128 / (255 std_c) + (128 / 255 - mean_c) / std_c: a gain, summed over RGB into the weights, and an offset, which
    the BatchNorm behind subtracts, or the bias adds. Exact where the kernel touches no padding.
    Raises PretrainedError for other stems.
    """
    folded = dict(state)
    for stem, batchnorm in _find_stems(model).items():
        key, absorbing = f"{stem}.weight", f"{batchnorm}.running_mean" if batchnorm else f"{stem}.bias"
        missing = {key, absorbing} - state.keys()
        if missing:
            raise PretrainedError(f"the weights have no {sorted(missing)}: they are not those of this network")
        weight = state[key].double()
        if weight.ndim != 4 or weight.shape[1] != 3:
            raise PretrainedError(f"{key} has shape {tuple(weight.shape)}; expected (C, 3, k, k) for RGB input")
        means, deviations = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
        offset = (weight * ((128 / 255 - means) / deviations)).sum(dim=(1, 2, 3))
        folded[key] = (weight * (128 / (255 * deviations))).sum(dim=1, keepdim=True).float()
        folded[absorbing] = (state[absorbing].double() + (-offset if batchnorm else offset)).float()
    return folded


def copy_mapped(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy every tensor but the head's by its name; PretrainedError names all that do not fit, before any copy."""
    head = f"{head_name(model)}."  # of a MobileNetV2 with its dropout
    target, offered = (
        {name: one for name, one in of.items() if not (name.startswith(head) or name.endswith("num_batches_tracked"))}
        for of in (model.state_dict(), state)
    )
    if faults := weight_faults(target, offered):
        raise PretrainedError(f"the weights do not fit {type(model).__name__}: {name_first(faults)}")
    with torch.no_grad():
        for name, own in target.items():
            own.copy_(offered[name])


def _find_stems(model: nn.Module) -> dict[str, str]:
    """Return {convolution that reads the image: BatchNorm behind it, or nothing where its bias takes the offset}."""
    behind = {group[0]: group[1] for group in fuse_list(model)}
    stems = [step.name for step in read_steps(model) if step.sources == (IMAGE,)]
    found = {}
    for stem in stems:
        follower: Any = model.get_submodule(behind[stem]) if stem in behind else None
        has_bias = getattr(model.get_submodule(stem), "bias", None) is not None
        if not isinstance(follower, nn.BatchNorm2d) and not has_bias:
            raise PretrainedError(f"{stem} reads the image and has neither bias nor BatchNorm behind it to fold into")
        found[stem] = behind[stem] if isinstance(follower, nn.BatchNorm2d) else ""
    return found


def _normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation per channel of pixel / 255 that a network's published weights expect."""
    if not name.startswith("timm:"):
        return IMAGENET_MEAN, IMAGENET_STD
    about = import_timm().get_pretrained_cfg(name.removeprefix("timm:"))
    return (about.mean, about.std) if about else (IMAGENET_MEAN, IMAGENET_STD)


def _download(options: ModelOptions) -> dict[str, Tensor]:
    source, _, name = options.name.partition(":")
    try:
        if source == "timm":
            timm, arguments = import_timm(), dict(options.arguments)
            merged = arguments.pop("reparameterize", False)
            network = timm.create_model(name, pretrained=True, **arguments)
            state: dict[str, Tensor] = (timm.utils.reparameterize_model(network) if merged else network).state_dict()
            return state
        if source not in ("torchvision", "mobilenetv2"):
            raise PretrainedError(f"there are no published weights for {options.name}; use --model.pretrained none")
        weights = get_model_weights(name).DEFAULT if name else MobileNet_V2_Weights.IMAGENET1K_V1
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise PretrainedError(
            f"the ImageNet weights could not be downloaded ({error}). Without a network, give the path of a "
            ".safetensors or .pth file named as its authors name it (torchvision, timm), --model.pretrained FILE, "
            "or start from random ones, --model.pretrained none"
        ) from error
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or a state dict that ``torch.save`` wrote. Raises PretrainedError."""
    if not path.is_file():
        raise PretrainedError(f"{path} is no file; give the path of a .safetensors, .pth or .pt file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = load_tensors(path)
    except Exception as error:  # the readers raise whatever the damaged bytes make them stumble over
        raise PretrainedError(f"{path} could not be read as weights ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PretrainedError(f"{path} holds no plain state dict (name -> tensor)")
    return state
