"""Times live watching: the steps of a training with `watch` beside the same steps without.

Plain and watched stretches take turns in one process, so that a machine whose speed drifts slows
all alike; each stretch begins with a few steps that are not timed. Ratios are of neighbours.

    python benchmarks/bench_live.py [--rounds 5] [--steps 40]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from traincheck_plugin import watch

torch.set_num_threads(1)


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


def cnn() -> tuple[nn.Module, torch.Tensor]:
    return Network(), torch.randn(64, 1, 28, 28)


def mlp() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10))
    return model, torch.randn(256, 128)


def many() -> tuple[nn.Module, torch.Tensor]:
    layers = [layer for _ in range(500) for layer in (nn.Linear(16, 16), nn.LayerNorm(16))]
    return nn.Sequential(*layers, nn.Linear(16, 10)), torch.randn(64, 16)


WORKLOADS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "CNN of the tutorial": cnn,
    "MLP, short steps": mlp,
    "2,002 small parameters": many,
}
MODES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "watched, every step": {"every_n_steps": 1},
    "watched, default budget": {"warm_up_steps": 2},
}
UNTIMED = 10


def seconds_per_step(
    model: nn.Module, x: torch.Tensor, num_steps: int, options: dict[str, Any] | None
) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    target = torch.zeros(len(x), dtype=torch.long)
    start = 0.0
    with nullcontext() if options is None else watch(model, optimizer, log=False, **options):
        for step in range(UNTIMED + num_steps):
            if step == UNTIMED:
                start = time.perf_counter()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        return (time.perf_counter() - start) / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    print(f"{arguments.rounds} rounds of {arguments.steps} steps; median (minimum to maximum)")
    for name, build in WORKLOADS.items():
        torch.manual_seed(0)
        model, x = build()
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(arguments.rounds):
            for mode, options in MODES.items():
                times[mode].append(seconds_per_step(model, x, arguments.steps, options))
        plain = times["plain"]
        print(f"{name}: {statistics.median(plain) * 1e3:.2f} ms per step")
        for mode in list(MODES)[1:]:
            ratios = [mine / other for mine, other in zip(times[mode], plain, strict=True)]
            print(
                f"  {mode:26}{statistics.median(ratios):.2f}x "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
