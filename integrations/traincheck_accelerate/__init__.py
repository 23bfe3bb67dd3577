"""Will watch training with Hugging Face Accelerate: `watch(accelerator)` around a training loop.

Nothing is public yet.
"""
