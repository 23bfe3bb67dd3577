"""The trainings that overhead is measured on, each a model with one batch of made-up data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

Batch = tuple[torch.Tensor, torch.Tensor]


class Network(nn.Module):
    """The network of the tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Residual(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out),
            nn.ReLU(),
            nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False), nn.BatchNorm2d(num_out),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or num_in != num_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """With the first layer that is usual for images of 32 by 32."""

    def __init__(self) -> None:
        widths = (64, 64, 128, 256, 512)
        blocks = [
            block
            for number, (before, width) in enumerate(pairwise(widths))
            for block in (
                Residual(before, width, 1 if number == 0 else 2),
                Residual(width, width, 1),
            )
        ]
        super().__init__(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip


class LanguageModel(nn.Module):
    """A transformer of 6 layers that predicts the next token: 10 million parameters."""

    def __init__(self, num_tokens: int = 1000, width: int = 360) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        layer = nn.TransformerEncoderLayer(
            width, 6, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_tokens)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.head(self.layers(self.embedding(x), mask=mask, is_causal=True)).flatten(0, 1)


class Recurrent(nn.Module):
    """An LSTM over a sequence, and what follows from its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, 128, num_layers=2, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _labels(number: int, classes: int = 10) -> torch.Tensor:
    return torch.randint(classes, (number,))


def cnn() -> tuple[nn.Module, Batch]:
    return Network(), (torch.randn(64, 1, 28, 28), _labels(64))


def mlp() -> tuple[nn.Module, Batch]:
    model = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 10))
    return model, (torch.randn(256, 128), _labels(256))


def resnet() -> tuple[nn.Module, Batch]:
    return ResNet18(), (torch.randn(16, 3, 32, 32), _labels(16))


def transformer() -> tuple[nn.Module, Batch]:
    tokens = torch.randint(1000, (4, 65))
    return LanguageModel(), (tokens[:, :-1], tokens[:, 1:].flatten())


def lstm() -> tuple[nn.Module, Batch]:
    return Recurrent(), (torch.randn(32, 20, 64), _labels(32))


def many() -> tuple[nn.Module, Batch]:
    layers = [layer for _ in range(375) for layer in (nn.Linear(16, 16), nn.LayerNorm(16))]
    return nn.Sequential(*layers, nn.Linear(16, 10)), (torch.randn(64, 16), _labels(64))


@dataclass(frozen=True)
class Workload:
    """One training.

    Attributes:
        name: for people.
        build: makes a model and a batch.
        num_steps: how many steps are timed at once, for half a second or more.
    """

    name: str
    build: Callable[[], tuple[nn.Module, Batch]]
    num_steps: int


WORKLOADS = {
    "cnn": Workload("CNN of the tutorial", cnn, 8),
    "mlp": Workload("MLP, short steps", mlp, 1200),
    "resnet": Workload("ResNet-18, small images", resnet, 2),
    "transformer": Workload("transformer, 10 M parameters", transformer, 3),
    "lstm": Workload("LSTM", lstm, 20),
    "many": Workload("1,502 small parameters", many, 8),
}
