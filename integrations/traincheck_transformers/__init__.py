"""Watches training with the Hugging Face Trainer: one callback for `Trainer(callbacks=[...])`."""

from traincheck_transformers.callback import TrainCheckCallback

__all__ = ["TrainCheckCallback"]
