"""The same with LightningCLI: the callback is in the configuration, not in the code.

python cli.py fit --config config.yaml
python cli.py fit --config config.yaml --model.bug frozen_backbone
"""

from __future__ import annotations

from digits import Classifier, Digits
from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI(Classifier, Digits, save_config_callback=None)
