"""What is peculiar to a GPU: it computes on while the host goes ahead, and is never waited for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from traincheck_plugin import watch
from traincheck_plugin.checker.check import check
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.report.summary import is_at_least
from traincheck_plugin.trace.reader import open_run

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]

STEPS = 30


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16 * 8 * 8, 10)

    def forward(self, x):
        return self.head(self.dropout(self.body(x).flatten(1)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        later = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        x = self.embedding(x)
        return self.head(self.body(x, mask=later.to(x.dtype), is_causal=True))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(3, 24, batch_first=True)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def image_batches(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    for _ in range(STEPS):
        x = torch.randn(8, 3, 12, 12, device="cuda", generator=generator)
        yield x, torch.randint(10, (8,), device="cuda", generator=generator)


def token_batches(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    for _ in range(STEPS):
        tokens = torch.randint(50, (4, 17), device="cuda", generator=generator)
        yield tokens[:, :-1], tokens[:, 1:].flatten()


def sequence_batches(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    for _ in range(STEPS):
        x = torch.randn(8, 7, 3, device="cuda", generator=generator)
        yield x, torch.randint(10, (8,), device="cuda", generator=generator)


def images(bug, seed):
    """A CNN in single precision, with a schedule."""
    model = Images().cuda()
    if bug == "frozen":
        model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for x, target in image_batches(seed):
        if bug != "not cleared":
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.detach()


def channels_last(bug, seed):
    """A CNN under autocast, with its memory in another order."""
    model = Images().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for x, target in image_batches(seed):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            output = model(x.to(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(output, target)
        loss.backward()
        optimizer.step()
        yield loss.detach()


def tokens(bug, seed):
    """A transformer under autocast, with a fused optimizer and clipped gradients."""
    model = Tokens().cuda()
    if bug == "other model":
        optimizer = torch.optim.AdamW(Tokens().cuda().parameters(), lr=1e-3, fused=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for x, target in token_batches(seed):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), target)
        loss.backward()
        if bug == "cleared before the step":
            optimizer.zero_grad()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.detach()


def recurrent(bug, seed):
    """A recurrent network of cuDNN, whose weights lie in one piece, with accumulation."""
    model = Recurrent().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=True)
    for number, (x, target) in enumerate(sequence_batches(seed)):
        if number % 2 == 0:
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target) / 2
        loss.backward()
        if number % 2 == 1:
            optimizer.step()
        yield loss.detach()


def in_half_precision(bug, seed):
    """The model itself in bfloat16."""
    model = Tokens().cuda().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x, target in token_batches(seed):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1).float(), target)
        loss.backward()
        optimizer.step()
        yield loss.detach()


def scaled(bug, seed):
    """Half precision with a gradient scaler, whose first scale is too large: steps are skipped."""
    model = Images().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    for x, target in image_batches(seed):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(x), target)
        scaler.scale(loss).backward()
        if bug != "clipped before unscaling":
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        yield loss.detach()


def moved_late(bug, seed):
    """The model is moved after its optimizer was made, which is fine for a plain one."""
    model = Images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.cuda()
    for x, target in image_batches(seed):
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        yield loss.detach()


TRAININGS = [
    images, channels_last, tokens, recurrent, in_half_precision, scaled, moved_late,
]  # fmt: skip
NEVER_WAITING = [images, channels_last, tokens, recurrent, in_half_precision]
"""Trainings that do not wait for the device themselves."""

BUGS = [
    (images, "frozen", "requires_grad=False"),
    (images, "not cleared", "zero_grad was not called"),
    (tokens, "other model", "in no model that ran"),
    (tokens, "cleared before the step", "after the last backward"),
    (scaled, "clipped before unscaling", "still scaled"),
]


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def losses_of(train, bug="", seed=0):
    torch.manual_seed(seed)
    losses = torch.stack(list(train(bug, seed))).tolist()
    return losses, torch.rand(3).tolist(), torch.rand(3, device="cuda").tolist()


def learned(train, folder):
    """Return what the healthy run teaches."""
    with watch(output_dir=folder / "healthy", log=False):
        losses_of(train)
    return infer([open_run(folder / "healthy")]).invariants


@pytest.mark.parametrize("train", TRAININGS, ids=lambda train: train.__name__)
@pytest.mark.parametrize("collects", [False, True], ids=["checked", "recorded"])
def test_it_trains_the_same_and_nothing_is_reported(train, collects, tmp_path):
    expected = losses_of(train)
    options = {"output_dir": tmp_path / "trace"} if collects else {}
    with watch(**options, invariants="default", every_n_steps=1, log=False) as monitor:
        got = losses_of(train)

    assert np.array_equal(got[0], expected[0], equal_nan=True)
    assert got[1:] == expected[1:]
    assert [f"{d.message}: {d.cause}" for d in monitor.report.diagnoses] == []
    assert monitor.report.problems == ()
    assert monitor.report.totals.num_passed >= 4


@pytest.mark.parametrize("train", NEVER_WAITING, ids=lambda train: train.__name__)
@pytest.mark.parametrize("collects", [False, True], ids=["checked", "recorded"])
def test_no_step_waits_for_the_device(train, collects, tmp_path):
    options = {"output_dir": tmp_path / "trace"} if collects else {}
    torch.manual_seed(0)
    with watch(**options, invariants="default", every_n_steps=1, log=False) as monitor:
        for number, _ in enumerate(train("", 0)):
            # What torch sets up on first use may wait.
            if number == 5:
                torch.cuda.set_sync_debug_mode("error")
        torch.cuda.set_sync_debug_mode("default")

    assert monitor.report.problems == ()
    assert monitor.report.totals.num_passed >= 4


@pytest.fixture(autouse=True)
def waiting_is_allowed():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("train", TRAININGS, ids=lambda train: train.__name__)
def test_another_seed_is_silent_live_and_offline(train, tmp_path):
    invariants = learned(train, tmp_path)
    dump_invariants(invariants, tmp_path / "rules.json")
    with watch(invariants=tmp_path / "rules.json", every_n_steps=1, log=False) as monitor:
        losses_of(train, seed=1)
    with watch(output_dir=tmp_path / "other", log=False):
        losses_of(train, seed=1)

    assert [f"{d.message}: {d.cause}" for d in monitor.report.diagnoses] == []
    assert monitor.report.totals.num_passed >= 20
    told = check(open_run(tmp_path / "other"), invariants).diagnoses
    assert [d.message for d in told if is_at_least(d.severity, "warning")] == []


@pytest.mark.parametrize(("train", "bug", "said"), BUGS, ids=[bug for _, bug, _ in BUGS])
def test_bugs_are_reported(train, bug, said, tmp_path):
    dump_invariants(learned(train, tmp_path), tmp_path / "rules.json")
    with watch(invariants=tmp_path / "rules.json", every_n_steps=1, log=False) as monitor:
        losses_of(train, bug, seed=1)

    told = [f"{d.message}: {d.cause}" for d in monitor.report.diagnoses]
    assert any(said in text for text in told), told


def test_a_captured_step_is_left_alone():
    """A CUDA graph replays kernels; what is done while it is captured would be replayed, too."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, capturable=True)
    x, target = torch.randn(8, 16, device="cuda"), torch.randint(4, (8,), device="cuda")
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    def train():
        model.load_state_dict(start)
        optimizer.state.clear()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step()
        losses = []
        for _ in range(10):
            graph.replay()
            losses.append(loss.item())
        return losses

    expected = train()
    with watch(every_n_steps=1, log=False) as monitor:
        got = train()

    assert got == expected
    assert monitor.report.diagnoses == ()
    assert any("CUDA graph" in problem for problem in monitor.report.problems)


def test_a_compiled_model_trains_the_same():
    def train():
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Images().cuda()
        compiled = torch.compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for x, target in image_batches(0):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(compiled(x), target)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return losses

    expected = train()
    with watch(every_n_steps=1, log=False) as monitor:
        got = train()

    assert got == expected
    assert monitor.report.diagnoses == ()
    assert monitor.report.totals.num_passed >= 4


class Scale(nn.Module):
    """Has a large and a small parameter, and nothing that needs a library."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.ones(300_000))
        self.small = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.large * self.small.sum()


@pytest.mark.parametrize("collects", [False, True], ids=["checked", "recorded"])
def test_it_observes_as_well_where_only_deterministic_algorithms_are_allowed(collects, tmp_path):
    options = {"output_dir": tmp_path / "trace"} if collects else {}
    torch.use_deterministic_algorithms(True)
    try:
        with watch(**options, invariants="default", every_n_steps=1, log=False) as monitor:
            model = Scale().cuda()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(torch.ones(300_000, device="cuda")).square().mean().backward()
                optimizer.step()
    finally:
        torch.use_deterministic_algorithms(False)

    assert monitor.report.diagnoses == ()
    assert monitor.report.problems == ()
    assert monitor.report.totals.num_passed >= 4
