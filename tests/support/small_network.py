"""A network small enough to be converted in seconds, with every construct that the integer files must carry."""

import numpy as np
import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from brainq_torch.data.pixels import scale_pixels

SIDE = 36
"""9 x 9 pixels reach the pooling: an odd number, whose mean ONNX Runtime may take in its integer kernel."""
COUNT = 24


class SmallNetwork(nn.Module):
    """Convolutions of every kind, a shortcut, a BatchNorm before its convolution, poolings, a linear layer."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.add = FloatFunctional()
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU()
        self.down = nn.AvgPool2d(2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(8, 4)

    def forward(self, image):
        stem = self.stem(self.quant(image))
        added = self.add.add(stem, self.point(self.depth(stem)))
        pooled = self.pool(self.down(self.relu(self.norm(added))))
        return self.dequant(self.classifier(torch.flatten(pooled, 1)))


def small_network(seed=0):
    """Return a float network in eval mode made of integers: the same on every processor, each channel at work."""
    generator = np.random.default_rng(seed)
    model = SmallNetwork()
    with torch.no_grad():
        for values in model.parameters():
            values.copy_(torch.from_numpy(generator.integers(-16, 17, values.shape)) / 16)
            if values.dim() == 1:  # a BatchNorm's factor, or a bias that cannot be overlooked
                values.abs_().mul_(0.5).add_(0.5)
        # each channel goes its own way through, above what the others take from it: none is dead behind a ReLU
        model.depth[0].weight[:, 0, 1, 1] += 2
        model.point[0].weight[:, :, 0, 0].diagonal().add_(2)
    return model.eval()


def small_images(count=COUNT, seed=1, side=SIDE):
    """Return (count, side, side) uint8 images of 16 even fields under a fine grain, integers from the start."""
    generator = np.random.default_rng(seed)
    fields = generator.integers(0, 108, (count, 4, 4)).repeat(side // 4, 1).repeat(side // 4, 2)
    brightness = generator.integers(20, 108, (count, 1, 1))
    return (brightness + fields + generator.integers(-20, 40, (count, side, side))).astype(np.uint8)


def as_input(pixels):
    """Return the network's input of uint8 images."""
    return torch.from_numpy(scale_pixels(np.ascontiguousarray(pixels)))
