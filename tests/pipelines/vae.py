"""A variational autoencoder learns to draw digits: Adam, two losses in one, no labels."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "frozen_encoder": (0, "requires_grad|frozen"),
    "step_before_backward": (
        0,
        "(before|without|no|after|follow).* backward|backward.*(before|after)",
    ),
    "zero_grad_after_backward": (0, "clear|zero_grad|zeroed|no gradient"),
    "other_model_optimizer": (
        0,
        "in no optimizer|not in .* optimizer|not part of|of no module|other model",
    ),
    "detached_encoder": (
        0,
        "detach|(no|without) gradient|gradient .*(None|missing)|not reach|graph",
    ),
    "lr_zero": (0, r"\blr\b|learning rate"),
    "same_batch": (1, "batch|same data|same input|repeat"),
    "optimizer_every_step": (1, "(new|created|constructed|every).*optimizer|state.*(reset|lost)"),
    "log_variance_subtracted": (0, "another loss"),
}


class Encoder(nn.Module):
    def __init__(self, hidden, latent):
        super().__init__()
        self.hidden = nn.Linear(784, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)

    def forward(self, x):
        x = F.relu(self.hidden(x.flatten(1)))
        return self.mean(x), self.log_variance(x)


class Decoder(nn.Module):
    def __init__(self, hidden, latent):
        super().__init__()
        self.hidden = nn.Linear(latent, hidden)
        self.pixels = nn.Linear(hidden, 784)

    def forward(self, z):
        return self.pixels(F.relu(self.hidden(z)))


class VAE(nn.Module):
    def __init__(self, hidden=128, latent=8, detached=False):
        super().__init__()
        self.encoder = Encoder(hidden, latent)
        self.decoder = Decoder(hidden, latent)
        self.detached = detached

    def forward(self, x):
        mean, log_variance = self.encoder(x)
        if self.detached:
            mean, log_variance = mean.detach(), log_variance.detach()
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def loss_function(logits, x, mean, log_variance, bug=None):
    reconstruction = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
    shift = 1 - log_variance if bug == "log_variance_subtracted" else 1 + log_variance
    divergence = -0.5 * torch.sum(shift - mean.pow(2) - log_variance.exp())
    return (reconstruction + divergence) / len(x)


def train(model, loader, optimizer, bug):
    model.train()
    total = 0.0
    for images, _ in loader:
        if bug == "same_batch":
            images, _ = loader.dataset[: loader.batch_size]
        if bug == "optimizer_every_step":
            optimizer = optim.Adam(model.parameters(), lr=1e-3)
        if bug != "no_zero_grad":
            optimizer.zero_grad()
        loss = loss_function(*forward(model, images), bug)
        if bug == "step_before_backward":
            optimizer.step()
        loss.backward()
        if bug == "zero_grad_after_backward":
            optimizer.zero_grad()
        if bug != "step_before_backward":
            optimizer.step()
        total += loss.item()
    return total / len(loader)


def forward(model, images):
    logits, mean, log_variance = model(images)
    return logits, images, mean, log_variance


def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        losses = [loss_function(*forward(model, images)).item() for images, _ in loader]
    return sum(losses) / len(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(640, 128)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=64)

    model = VAE(detached=args.bug == "detached_encoder")
    if args.bug == "frozen_encoder":
        model.encoder.requires_grad_(False)
    trained = VAE() if args.bug == "other_model_optimizer" else model
    optimizer = optim.Adam(trained.parameters(), lr=0.0 if args.bug == "lr_zero" else 1e-3)

    for epoch in range(1, args.epochs + 1):
        train_loss = train(model, train_loader, optimizer, args.bug)
        test_loss = evaluate(model, test_loader)
        print(f"epoch {epoch} train loss {train_loss:.4f} test loss {test_loss:.4f}")


if __name__ == "__main__":
    main()
