"""Published weights into our networks: explicit keys, a shape check, the RGB normalisation folded into the stem."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

from brainq_torch.files import load_tensors
from brainq_torch.models.mobilenetv2 import MobileNetV2
from brainq_torch.run_files import BrainqError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""torchvision's input normalisation, per RGB channel, of pixel / 255."""

_STEM = "features.0.0.weight"
_STEM_BATCHNORM_MEAN = "features.0.1.running_mean"
_HEAD = frozenset({"classifier.1.weight", "classifier.1.bias"})


class PretrainedError(BrainqError):
    """Published weights that cannot be read, fetched, or put into the network."""


def load_pretrained(model: nn.Module, source: str) -> None:
    """Put weights from a file or torchvision's ``imagenet`` into a network, but the head's. Raises PretrainedError."""
    if source == "none":
        return
    if not isinstance(model, MobileNetV2):
        raise PretrainedError(
            f"there are no published weights for {type(model).__name__} here; use --model.pretrained none"
        )
    state = _download() if source == "imagenet" else read_weights(Path(source))
    copy_mapped(model, fold_rgb_stem(state))


def fold_rgb_stem(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold torchvision's RGB normalisation into a first convolution that takes one channel, (pixel - 128) / 128.

    For a grey pixel p the RGB network sees (p / 255 - mean_c) / std_c in channel c. With u = (p - 128) / 128 that is u
    * 128 / (255 std_c) + (128 / 255 - mean_c) / std_c: a gain, summed over RGB into the weights, and an offset, which
    the BatchNorm behind subtracts. Exact where the kernel touches no padding. Raises PretrainedError for other stems.
    """
    missing = {_STEM, _STEM_BATCHNORM_MEAN} - state.keys()
    if missing:
        raise PretrainedError(f"the weights have no {sorted(missing)}: they are not a torchvision MobileNetV2")
    stem = state[_STEM].double()
    if stem.ndim != 4 or stem.shape[1] != 3:
        raise PretrainedError(f"{_STEM} has shape {tuple(stem.shape)}; expected (C, 3, 3, 3) for RGB input")
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
    gain = 128 / (255 * std)
    offset = (stem * ((128 / 255 - mean) / std)).sum(dim=(1, 2, 3))
    folded = dict(state)
    folded[_STEM] = (stem * gain).sum(dim=1, keepdim=True).float()
    folded[_STEM_BATCHNORM_MEAN] = (state[_STEM_BATCHNORM_MEAN].double() - offset).float()
    return folded


def copy_mapped(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy every tensor but the head's by its name; PretrainedError names all that do not fit, before any copy."""
    target = model.state_dict()
    wanted = {name for name in target if name not in _HEAD and not name.endswith("num_batches_tracked")}
    offered = {name for name in state if name not in _HEAD and not name.endswith("num_batches_tracked")}
    faults = [f"missing {name}" for name in sorted(wanted - offered)]
    faults += [f"unexpected {name}" for name in sorted(offered - wanted)]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, the network has {tuple(target[name].shape)}"
        for name in sorted(wanted & offered)
        if state[name].shape != target[name].shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise PretrainedError(f"the weights do not fit {type(model).__name__}: {shown}")
    with torch.no_grad():
        for name in wanted:
            target[name].copy_(state[name])


def _download() -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = MobileNet_V2_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise PretrainedError(
            f"the ImageNet weights could not be downloaded ({error}). Without a network, give the path of a "
            "torchvision-named .safetensors or .pth file, --model.pretrained FILE, or start from none"
        ) from error
    return weights


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
