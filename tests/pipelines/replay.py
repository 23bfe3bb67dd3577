"""Q-learning from a memory of what an agent saw on its way through a grid."""

from __future__ import annotations

import argparse
import copy
from collections import deque

import numpy as np
import torch
from torch import nn, optim

BUGS = {
    "observation_not_copied": (0, "without a copy|one sample|are the same"),
    "end_ignored": (0, "computed otherwise|a factor"),
}
SIZE = 5
BATCHES = 40


class Grid:
    """A walk to the goal; what is seen is one array, which each move changes."""

    def __init__(self, random):
        self.random = random
        self.seen = np.zeros((2, SIZE, SIZE), np.float32)

    def begin(self):
        self.place, self.goal = self.random.permutation(SIZE * SIZE)[:2]
        self.moves = 0
        self.draw()

    def draw(self):
        self.seen[:] = 0
        self.seen[0].flat[self.place] = self.seen[1].flat[self.goal] = 1

    def move(self, action):
        row, column = divmod(int(self.place), SIZE)
        rows, columns = ((0, 1), (0, -1), (1, 0), (-1, 0))[action]
        row, column = np.clip([row + rows, column + columns], 0, SIZE - 1)
        self.place = row * SIZE + column
        self.moves += 1
        self.draw()
        is_there = self.place == self.goal
        return float(is_there) - 0.05, is_there, self.moves == 30


class Duel(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(2 * SIZE * SIZE, 64), nn.ReLU())
        self.value = nn.Linear(64, 1)
        self.advantage = nn.Linear(64, 4)

    def forward(self, seen):
        seen = self.body(seen)
        advantage = self.advantage(seen)
        return self.value(seen) + advantage - advantage.mean(dim=1, keepdim=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)

    grid = Grid(random)
    grid.begin()
    values = Duel()
    target = copy.deepcopy(values).requires_grad_(False)
    optimizer = optim.NAdam(values.parameters(), lr=2e-3)
    memory = deque(maxlen=2000)

    def act():
        seen = grid.seen if args.bug == "observation_not_copied" else grid.seen.copy()
        if random.random() < 0.3:
            action = int(random.integers(4))
        else:
            with torch.no_grad():
                action = int(values(torch.from_numpy(seen)[None]).argmax())
        reward, is_there, is_late = grid.move(action)
        after = grid.seen if args.bug == "observation_not_copied" else grid.seen.copy()
        memory.append((seen, action, reward, after, float(is_there)))
        if is_there or is_late:
            grid.begin()

    for _ in range(10 * args.batch_size):
        act()
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for _ in range(BATCHES):
            for _ in range(4):
                act()
            chosen = [memory[i] for i in random.integers(len(memory), size=args.batch_size)]
            seen, action, reward, after, is_over = map(np.array, zip(*chosen, strict=True))
            seen, after = torch.from_numpy(seen), torch.from_numpy(after)
            reward, is_over = torch.tensor(reward).float(), torch.tensor(is_over).float()
            with torch.no_grad():
                best = values(after).argmax(dim=1, keepdim=True)
                later = target(after).gather(1, best).squeeze(1)
                if args.bug != "end_ignored":
                    later = (1 - is_over) * later
                wanted = reward + 0.9 * later
            valued = values(seen).gather(1, torch.tensor(action)[:, None]).squeeze(1)
            loss = nn.functional.smooth_l1_loss(valued, wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(values.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                for mine, other in zip(target.parameters(), values.parameters(), strict=True):
                    mine.lerp_(other, 0.1)
            total += loss.item()
        print(f"epoch {epoch} loss {total / BATCHES:.4f}")


if __name__ == "__main__":
    main()
