"""Silent bugs that people met, each in a small plain loop: reported, and its clean twin is not.

The rules of each are learned from the clean twin with another seed. Where each was met is told
beside it; `docs/lightning.md`, `docs/accelerate.md` and `docs/transformers.md` have more.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from traincheck_plugin import watch
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.trace.reader import open_run

pytestmark = pytest.mark.usefixtures("device")

BATCH, CLASSES, WIDTH = 8, 4, 12
STEPS = 24


class Net(nn.Module):
    """An encoder with dropout and batch norm, and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.1)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x))


def batches(seed, num_steps=STEPS):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    for _ in range(num_steps):
        x = torch.randn(BATCH, 6, generator=generator)
        yield x, x[:, :CLASSES].argmax(1)


def plain(bug, seed):
    """The loop of a tutorial, with evaluation."""
    model = Net()
    held = model.head.parameters() if bug == "part in no optimizer" else model.parameters()
    if bug == "frozen by mistake":
        model.encoder.requires_grad_(False)
    if bug == "layer replaced after the optimizer was built":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.head = nn.Linear(WIDTH, CLASSES)
    else:
        optimizer = torch.optim.SGD(held, lr=0.1, momentum=0.9)
    other = Net()
    if bug == "optimizer of another model":
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    if bug == "in eval mode from the start":
        model.eval()
    for number, (x, y) in enumerate(batches(seed)):
        if bug == "optimizer made anew for every step":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        features = model.encoder(x) if bug == "encoder detached" else None
        output = model(x) if features is None else model.head(features.detach())
        loss = nn.functional.cross_entropy(output, y)
        if bug == "loss turns into nan" and number >= 5:
            loss = loss * float("nan")
        if bug == "clipped before the backward":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if bug == "step before backward":
            optimizer.zero_grad()
            optimizer.step()
            loss.backward()
        else:
            if bug != "gradients never cleared":
                optimizer.zero_grad()
            loss.backward()
            if bug == "cleared before the step":
                optimizer.zero_grad()
            if bug != "clipped before the backward":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if bug != "schedule never stepped":
            schedule.step()
        if number % 8 == 7:
            model.eval()
            with torch.no_grad():
                model(x)
            if bug != "left in eval mode":
                model.train()


def accumulating(bug, seed):
    """Four micro-batches to a step."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for number, (x, y) in enumerate(batches(seed, 4 * STEPS)):
        if bug == "cleared with every micro-batch" or number % 4 == 0:
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss = loss / 4
        if bug == "loss divided twice":
            loss = loss / 4
        loss.backward()
        is_late = bug == "steps with every micro-batch at the end" and number >= 80
        if number % 4 == 3 or is_late:
            optimizer.step()
            if is_late:
                optimizer.zero_grad()
            schedule.step()
        elif bug == "schedule stepped with every micro-batch":
            schedule.step()


def finetuning(bug, seed):
    """A head on a frozen encoder, whose statistics stay as they were loaded."""
    model = Net()
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-2)
    for x, y in batches(seed):
        model.train()
        if bug != "frozen encoder follows the data":
            model.encoder.eval()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def unfreezing(bug, seed):
    """The encoder is unfrozen in the middle, as gradual fine-tuning does."""
    model = Net()
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-2)
    for number, (x, y) in enumerate(batches(seed)):
        if number == 8:
            model.encoder.requires_grad_(True)
            if bug != "unfrozen and not given to the optimizer":
                optimizer.add_param_group({"params": list(model.encoder.parameters())})
        if bug == "frozen again" and number == 16:
            model.encoder.requires_grad_(False)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def scaled(bug, seed):
    """Gradient scaling, with overflows that the scaler answers by skipping the step."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    scaler = torch.amp.GradScaler(torch.get_default_device().type, init_scale=2.0**4)
    for number, (x, y) in enumerate(batches(seed, 2 * STEPS)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if number % 12 == 6:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        if bug == "clipped before unscaling":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.unscale_(optimizer)
        else:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = scaler.get_scale()
        scaler.step(optimizer)
        if bug == "stepped past the scaler as well" and loss.isfinite():
            optimizer.step()
        scaler.update()
        if bug == "schedule moves on when a step is skipped" or scaler.get_scale() >= before:
            schedule.step()


def tied(bug, seed):
    """A language model whose output layer is its embedding."""
    embedding = nn.Embedding(10, WIDTH)
    head = nn.Linear(WIDTH, 10, bias=False)
    head.weight = embedding.weight
    if bug == "tied weights became separate":
        head.weight = nn.Parameter(head.weight.detach().clone())
    model = nn.Sequential(embedding, head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    for _ in range(STEPS):
        tokens = torch.randint(10, (BATCH, 5), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()


def language(bug, seed):
    """A language model that predicts the next token."""
    model = nn.Sequential(nn.Embedding(20, WIDTH), nn.Linear(WIDTH, 20))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    shift = {"labels shifted twice": 2, "labels not shifted": 0}.get(bug, 1)
    for _ in range(STEPS):
        text = torch.randint(20, (BATCH, 14), generator=generator)
        optimizer.zero_grad()
        targets = text[:, shift : shift + 12].flatten()
        nn.functional.cross_entropy(model(text[:, :12]).flatten(0, 1), targets).backward()
        optimizer.step()


def adversarial(bug, seed):
    """A generator and a discriminator, each with an optimizer."""
    generating, judging = nn.Linear(4, 6), Net()
    of_generator = torch.optim.Adam(generating.parameters(), lr=1e-3)
    of_judge = torch.optim.Adam(judging.parameters(), lr=1e-3)
    for x, _ in batches(seed):
        if bug == "generator learns from the loss of its judge":
            of_generator.zero_grad()
        made = generating(torch.randn(BATCH, 4))
        of_judge.zero_grad()
        shown = made if bug == "generator learns from the loss of its judge" else made.detach()
        (judging(shown).mean() - judging(x).mean()).backward()
        of_judge.step()
        if bug != "generator learns from the loss of its judge":
            of_generator.zero_grad()
        (-judging(generating(torch.randn(BATCH, 4))).mean()).backward()
        of_generator.step()


@dataclass(frozen=True)
class Bug:
    """A seeded bug, the loop it is in, who met it, and a word of what must be said."""

    name: str
    loop: object
    met: str
    said: str
    first_step: int = 1


BUGS = [
    Bug("gradients never cleared", plain, "SO 60335387", "zero_grad was not called"),
    Bug("frozen by mistake", plain, "PyTorch forum 84911", "requires_grad=False"),
    Bug("part in no optimizer", plain, "luxonis-train 358, HVPNeT 5", "in no optimizer"),
    Bug(
        "layer replaced after the optimizer was built",
        plain,
        "accelerate 2665, 3256",
        "in no model that ran",
    ),
    Bug("optimizer of another model", plain, "pytorch 7844", "in no model that ran"),
    Bug("encoder detached", plain, "CoCa-pytorch 6, speechbrain 1396", "does not reach it"),
    Bug("in eval mode from the start", plain, "Lightning 20986, 20216", "in eval mode"),
    Bug("left in eval mode", plain, "ARENA_3.0 179", "in eval mode", first_step=8),
    Bug("schedule never stepped", plain, "so-vits-svc-fork 291", "scheduler is not stepped"),
    Bug("step before backward", plain, "of old", "updated 0 of 6 parameters"),
    Bug("cleared before the step", plain, "of old", "after the last backward"),
    Bug("clipped before the backward", plain, "of old", "no backward had come before it"),
    Bug(
        "optimizer made anew for every step",
        plain,
        "of old",
        "every step is made by a new optimizer",
    ),
    Bug("loss turns into nan", plain, "transformers 28073", "NaN or infinite", first_step=5),
    Bug(
        "cleared with every micro-batch",
        accumulating,
        "accelerate 616, 1299, 2341",
        "earlier micro-batches were cleared",
    ),
    Bug(
        "steps with every micro-batch at the end",
        accumulating,
        "accelerate 1847",
        "before their micro-batches are complete",
        first_step=20,
    ),
    Bug(
        "loss divided twice",
        accumulating,
        "transformers 40052",
        "4 backwards lead to a step, and the loss of each is divided by 16",
    ),
    Bug(
        "schedule stepped with every micro-batch",
        accumulating,
        "starVLA 210",
        "through its schedule too fast",
    ),
    Bug(
        "frozen encoder follows the data",
        finetuning,
        "Lightning 2551, 18930",
        "buffers in frozen parts of the model changed",
    ),
    Bug(
        "unfrozen and not given to the optimizer",
        unfreezing,
        "Lightning 20340",
        "in no optimizer",
        first_step=8,
    ),
    Bug("frozen again", unfreezing, "Lightning 21901", "requires_grad=False", first_step=16),
    Bug("clipped before unscaling", scaled, "pytorch/examples 1196", "still scaled"),
    Bug("stepped past the scaler as well", scaled, "of old", "with no backward in between"),
    Bug(
        "schedule moves on when a step is skipped",
        scaled,
        "Lightning 5558, 18828, 16228",
        "through its schedule too fast",
        first_step=6,
    ),
    Bug("tied weights became separate", tied, "accelerate 993", "were tied and are separate"),
    Bug("labels shifted twice", language, "of old", "shifted twice"),
    Bug("labels not shifted", language, "of old", "only has to copy it"),
    Bug(
        "generator learns from the loss of its judge",
        adversarial,
        "of old",
        "zero_grad is called too early",
    ),
]


def run(loop, bug="", seed=0, **options):
    torch.manual_seed(seed)
    with watch(**options, every_n_steps=1, log=False) as monitor:
        loop(bug, seed)
    return monitor.report


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """What each clean loop teaches, as a function of the loop."""
    folder = tmp_path_factory.mktemp("rules")
    known = {}

    def of(loop):
        if loop not in known:
            trace = folder / loop.__name__
            run(loop, output_dir=trace)
            known[loop] = folder / f"{loop.__name__}.json"
            dump_invariants(infer([open_run(trace)]).invariants, known[loop])
        return known[loop]

    return of


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_known_bug_is_reported_within_a_step(rules, bug):
    report = run(bug.loop, bug.name, seed=1, invariants=rules(bug.loop))

    told = [f"{d.message}: {d.cause}" for d in report.diagnoses]
    assert any(bug.said in text for text in told), told
    first = min(violation.step for violation in report.violations)
    assert first <= bug.first_step + 1
    assert first >= (bug.first_step if bug.first_step > 1 else 0)


@pytest.mark.parametrize("loop", dict.fromkeys(bug.loop for bug in BUGS), ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_clean_twin_is_silent(rules, loop, seed):
    report = run(loop, seed=seed, invariants=rules(loop))

    assert [f"{d.message}: {d.cause}" for d in report.diagnoses] == []
    assert report.problems == ()
    assert report.totals.num_passed >= 8


@pytest.mark.parametrize("loop", dict.fromkeys(bug.loop for bug in BUGS), ids=lambda f: f.__name__)
def test_the_bundled_invariants_are_silent_on_it(loop):
    report = run(loop, seed=1)

    assert report.diagnoses == ()
    assert report.totals.num_passed >= 4
