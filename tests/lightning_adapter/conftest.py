from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import lightning
import pytest
import pytorch_lightning
import torch
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import Classifier, loader, quiet_loggers, train_plain, trainer
from traincheck_plugin import watch
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.trace.reader import open_run

SET_BY_OTHERS = ("PYTEST_", "TRAINCHECK_", "WORLD_SIZE", "PL_")
"""The tests set them, or Lightning."""

PATCHED = (
    torch.optim.Optimizer,
    torch.optim.AdamW,
    torch.autograd.profiler.record_function,
    torch.optim.lr_scheduler.LRScheduler,
    torch.amp.GradScaler,
    torch.amp.autocast_mode.autocast,
    torch.Tensor,
    torch.nn.Module,
    torch.nn.utils,
    torch.utils.data.DataLoader,
    torch.autograd,
    torch,
    lightning.pytorch.LightningModule,
    pytorch_lightning.LightningModule,
)

# torch wraps the `step` of a class of optimizers when the first of it is made.
for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.LBFGS):
    kind([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def world():
    """What a run may replace and has to put back."""
    module, optimizer = torch.nn.modules.module, sys.modules["torch.optim.optimizer"]
    names = ("", "traincheck", "lightning", "lightning.pytorch", "pytorch_lightning")
    return {
        "members": {
            (one.__name__, name): id(value)
            for one in PATCHED
            for name, value in vars(one).items()
            # Lightning leaves this one of torch's behind, and tqdm its thread.
            if callable(value) and (one.__name__, name) != ("DataLoader", "__delattr__")
        },
        "hooks": [len(hooks) for name, hooks in vars(module).items() if "_hooks" in name and hooks],
        "steps": len(
            optimizer._global_optimizer_pre_hooks | optimizer._global_optimizer_post_hooks
        ),
        "modes": torch._C._len_torch_function_stack(),
        "finders": list(map(id, sys.meta_path)),
        "threads": {t for t in threading.enumerate() if t.name != "tqdm_monitor"},
        "handlers": [list(logging.getLogger(name).handlers) for name in names],
        "environment": {k: v for k, v in os.environ.items() if not k.startswith(SET_BY_OTHERS)},
    }


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(monkeypatch, tmp_path):
    """Guard every test: whatever it runs, the process is afterwards as it was."""
    for name in list(os.environ):
        if name.startswith("TRAINCHECK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    quiet_loggers()
    interrupt = signal.getsignal(signal.SIGINT)
    before = world()
    yield
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores it once it was interrupted
    after = world()
    assert set(after.pop("members").items()) ^ set(before.pop("members").items()) == set()
    assert after == before


def _learn(folder, path):
    dump_invariants(infer([open_run(folder)]).invariants, path)
    return path


@pytest.fixture(scope="session")
def plain_reference(tmp_path_factory):
    """Invariants of a plain loop over the model of `Classifier`."""
    folder = tmp_path_factory.mktemp("plain")
    module = Classifier()
    with watch(module, output_dir=folder / "trace", log=False):
        train_plain(module)
    return _learn(folder / "trace", folder / "invariants.json")


@pytest.fixture(scope="session")
def lightning_reference(tmp_path_factory):
    """Invariants of `Classifier` under a trainer."""
    folder = tmp_path_factory.mktemp("lightning")
    quiet_loggers()
    trainer(TrainCheckCallback(output_dir=folder / "trace", log=False)).fit(Classifier(), loader())
    return _learn(folder / "trace", folder / "invariants.json")


@pytest.fixture
def learn(tmp_path):
    """Trains a module with `trainer(*callbacks, **options)` and returns what was learned of it."""

    def train(module, *callbacks, val=False, **options):
        callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
        fitting = trainer(callback, *callbacks, **options)
        fitting.fit(module, loader(), loader(2) if val else None)
        return _learn(tmp_path / "trace", tmp_path / "invariants.json")

    return train


@pytest.fixture(params=["plain", "lightning"])
def reference(request):
    return request.getfixturevalue(f"{request.param}_reference")
