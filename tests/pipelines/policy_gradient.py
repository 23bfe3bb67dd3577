"""REINFORCE: a policy looks for the end of a corridor; episodes differ in length."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim

BUGS = {}


LENGTH = 6


def play(policy):
    place, log_probabilities = 0, []
    while place < LENGTH and len(log_probabilities) < 40:
        state = F.one_hot(torch.tensor(place), LENGTH).float()
        choice = torch.distributions.Categorical(logits=policy(state))
        action = choice.sample()
        log_probabilities.append(choice.log_prob(action))
        place = max(0, place + (1 if action == 1 else -1))
    return torch.stack(log_probabilities)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    policy = nn.Sequential(nn.Linear(LENGTH, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = optim.Adam(policy.parameters(), lr=1e-2)
    baseline = 20.0
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for _ in range(640 // args.batch_size):
            log_probabilities = play(policy)
            length = len(log_probabilities)
            loss = -(baseline - length) * log_probabilities.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            baseline = 0.9 * baseline + 0.1 * length
            total += length
        print(f"epoch {epoch} mean length {total / (640 // args.batch_size):.4f}")


if __name__ == "__main__":
    main()
