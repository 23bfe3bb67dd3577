"""Will watch training with PyTorch Lightning: one callback for `Trainer(callbacks=[...])`.

Nothing is public yet.
"""
