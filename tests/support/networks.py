"""Networks of others' kinds, small: the README's own class, a narrow VGG, and some that nothing can be made of."""

import re
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.vgg import VGG, make_layers

README_CLASS = re.search(
    r"```python\n(import torch\n.*?class MyNetwork.*?)```", Path("configs/README.md").read_text(), re.S
)[1]


def settle(model, images):
    """Let BatchNorms of a network with random weights see images, so that no activation dies out."""
    torch.manual_seed(1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight)
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.2, 0.3)
        model.train()(images)
    return model.eval()


class NarrowVgg(VGG):
    """torchvision's VGG-11 with BatchNorm, an eighth as wide."""

    def __init__(self, num_classes, width=8):
        layers = [part if part == "M" else part * width for part in (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")]
        super().__init__(make_layers(layers, batch_norm=True), num_classes=num_classes, init_weights=False)
        self.classifier[0] = nn.Linear(8 * width * 49, 64)
        self.classifier[3] = nn.Linear(64, 64)
        self.classifier[6] = nn.Linear(64, num_classes)


class Branching(nn.Module):
    """Asks for values."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(1, num_classes, 3)

    def forward(self, image):
        return self.conv(image if image.mean() > 0 else -image).mean((2, 3))


class Gated(nn.Module):
    """A convolution whose channels are weighed (squeeze-and-excitation), then SiLU."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.act = nn.SiLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, image):
        made = self.conv(image)
        made = self.act(made * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(made, 1))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(made, (1, 1)), start_dim=1))


class ManyLogits(nn.Module):
    """Takes no account of the classes."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 7, 3)

    def forward(self, image):
        return self.conv(image).mean((2, 3))


class NoClasses(nn.Conv2d):
    """Is not told how many classes there are."""

    def __init__(self):
        super().__init__(1, 4, 3)


class NoImage(nn.Module):
    """Has no convolution that could be made grey."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, image):
        return self.head(image.mean((2, 3)))


class Padded(nn.Module):
    """Zeros around the image, maps and averages; groups, dilation; a pooling that runs twice; BatchNorm of vectors."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8))
        self.wide, self.norm = nn.Conv2d(8, 8, 3, padding="same", dilation=2), nn.BatchNorm2d(8)
        self.parts, self.short = nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.Conv2d(8, 8, (1, 3), padding="valid")
        self.average, self.pool = nn.AvgPool2d(3, 1, (1, 0)), nn.MaxPool2d(3, 2, 1)
        self.vector, self.norm1d = nn.Linear(72, 12, bias=False), nn.BatchNorm1d(12)
        self.logits = nn.Linear(12, num_classes)

    def forward(self, image):
        made = self.pool(functional.relu(self.stem(functional.pad(image, (1, 0, 1, 0)))))
        made = functional.relu(self.norm(self.wide(made)))
        made = functional.relu(self.parts(made) + functional.pad(self.average(self.short(made)), [2, 2, 0, 0]))
        vector = self.vector(functional.avg_pool2d(self.pool(made), 2, padding=1).view(-1, 72))
        return self.logits(functional.relu6(self.norm1d(vector)))


class TwoPools(nn.Module):
    """Two average poolings with the very same constants; a convolution and its ReLU behind the mean; an unused head."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.late, self.head = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, num_classes)
        self.aside = nn.Sequential(nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, image):
        small = functional.avg_pool2d(functional.relu6(self.conv1(image)), 2)
        small = functional.avg_pool2d(functional.relu(self.conv2(small)), 2)
        self.aside(small)
        pooled = functional.adaptive_avg_pool2d(functional.relu(self.wide(small)), 1)
        return self.head(functional.relu(self.late(pooled)).flatten(1))
