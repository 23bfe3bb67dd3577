"""Q-learning of which of two digits is larger; a target network follows every few steps."""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim

BUGS = {
    "target_not_updated": (5, "never changed|copied|not updated|did not change"),
    "synced_from_itself": (4, "holds anyway|memory of|load"),
    "target_not_detached": (0, "not detached"),
    "values_in_a_column": (0, "broadcast|dimension|shape"),
}
FOLLOWS = 5


class Values(nn.Module):
    """Values two actions by two digits."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(2 * 784, 48)
        self.output = nn.Linear(48, 2)

    def forward(self, x):
        return self.output(F.relu(self.hidden(x)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    images, labels = load_digits(640)[0].tensors
    images = images.flatten(1)
    values = Values()
    target = copy.deepcopy(values).requires_grad_(False)
    optimizer = optim.RMSprop(values.parameters(), lr=5e-4)
    steps = 0
    for epoch in range(1, args.epochs + 1):
        total = count = 0
        for _ in range(len(images) // args.batch_size):
            pair, following = torch.randint(len(images), (2, 2, args.batch_size))
            state = torch.cat([images[pair[0]], images[pair[1]]], dim=1)
            after = torch.cat([images[following[0]], images[following[1]]], dim=1)
            with torch.no_grad():
                best = values(state).argmax(dim=1)
                chance = torch.rand(args.batch_size) < 0.3
                action = torch.where(chance, torch.randint(2, (args.batch_size,)), best)
                reward = (action == (labels[pair[1]] > labels[pair[0]]).long()).float()
                wanted = reward + 0.3 * target(after).amax(dim=1)
            if args.bug == "target_not_detached":
                wanted = reward + 0.3 * values(after).amax(dim=1)
            valued = values(state).gather(1, action[:, None])
            if args.bug != "values_in_a_column":
                valued = valued.squeeze(1)
            loss = F.smooth_l1_loss(valued, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if steps % FOLLOWS == 0 and args.bug != "target_not_updated":
                source = target if args.bug == "synced_from_itself" else values
                target.load_state_dict(source.state_dict())
            total += loss.item()
            count += 1
        print(f"epoch {epoch} loss {total / count:.4f}")


if __name__ == "__main__":
    main()
