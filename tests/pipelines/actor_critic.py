"""Actor and critic learn from a replay buffer, with slow targets; the actor every other step."""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import nn, optim

BUGS = {}


def network(size_in, size_out):
    return nn.Sequential(
        nn.Linear(size_in, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, size_out)
    )


def follow(slow, fast, rate=0.05):
    with torch.no_grad():
        for ours, theirs in zip(slow.parameters(), fast.parameters(), strict=True):
            ours.mul_(1 - rate).add_(theirs, alpha=rate)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    actor, critic = network(3, 1), network(4, 1)
    slow_actor, slow_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    actor_optimizer = optim.Adam(actor.parameters(), lr=1e-3)
    critic_optimizer = optim.Adam(critic.parameters(), lr=3e-3)
    buffer = []
    state = torch.randn(3)
    num_updates = 0
    for epoch in range(1, args.epochs + 1):
        total = number = 0.0
        for _ in range(2 * args.batch_size):
            with torch.no_grad():
                action = actor(state).tanh() + 0.1 * torch.randn(1)
            reward = -(state[:1] - action).square()
            following = 0.9 * state + 0.1 * action + 0.1 * torch.randn(3)
            buffer.append(torch.cat([state, action, reward, following]))
            state = following
            if len(buffer) < args.batch_size:
                continue
            rows = torch.stack(buffer)[torch.randint(len(buffer), (args.batch_size,))]
            states, actions, rewards, followings = rows.split([3, 1, 1, 3], dim=1)
            with torch.no_grad():
                then = torch.cat([followings, slow_actor(followings).tanh()], dim=1)
                target = rewards + 0.9 * slow_critic(then)
            loss = F.smooth_l1_loss(critic(torch.cat([states, actions], dim=1)), target)
            critic_optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(critic.parameters(), 10.0)
            critic_optimizer.step()
            total += loss.item()
            number += 1
            num_updates += 1
            if num_updates % 2 == 0:
                # The critic gets gradients here that nobody uses.
                value = critic(torch.cat([states, actor(states).tanh()], dim=1)).mean()
                actor_optimizer.zero_grad()
                (-value).backward()
                actor_optimizer.step()
                follow(slow_actor, actor)
                follow(slow_critic, critic)
        print(f"epoch {epoch} critic loss {total / number:.4f}")


if __name__ == "__main__":
    main()
