"""Watches training with Hugging Face Accelerate: ``with watch(accelerator):`` around the loop."""

from traincheck_accelerate.watching import watch

__all__ = ["watch"]
