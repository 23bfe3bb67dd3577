"""Will watch training with the Hugging Face Trainer: one callback for `Trainer(callbacks=[...])`.

Nothing is public yet.
"""
