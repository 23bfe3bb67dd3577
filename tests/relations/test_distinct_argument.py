"""What repeats although it should be new is found at once; what may repeat is not."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from tests.builders import RunBuilder
from tests.recorder.recording import LIFECYCLE, record
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import VAR_TYPES, Hypothesis, VarNameParam, VarTypeParam
from traincheck_plugin.relations.distinct_argument import (
    FOLLOWING,
    ORDERS,
    STATES,
    DistinctArgumentRelation,
)

RELATION = DistinctArgumentRelation()
NET = VarNameParam(var_name=f"{__name__}.Net", var_type=VAR_TYPES["input"], attr_name="data")
GENERAL = (FOLLOWING, ORDERS, STATES)
DATA = TensorDataset(torch.arange(384.0).view(96, 4), torch.zeros(96))


class Net(nn.Module):
    def __init__(self, *, rate=0.5):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.dropout = nn.Dropout(rate)

    def forward(self, x):
        return self.dropout(self.linear(x))


def parts(**options):
    model = Net(**options)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def step(model, optimizer, x, *, num_forwards=1):
    optimizer.zero_grad()
    for _ in range(num_forwards):
        model(x).sum().backward()
    optimizer.step()


def shuffled(**options):
    return DataLoader(DATA, batch_size=16, shuffle=True, **options)


def found(train, params=GENERAL):
    """Return, for each rule, the steps in which it fails and how often it holds."""
    torch.manual_seed(7)
    recording = record(train, LIFECYCLE)
    result = {}
    for param in params:
        monitor = RELATION.monitor((param,))
        failed, held = [], 0
        for window in recording.windows:
            examples = monitor.observe(window)
            for row in range(len(examples)):
                if examples.holds[row]:
                    held += 1
                else:
                    assert examples.explain(row).cause.text
                    failed.append(window.catalog.contexts[int(examples.context[row])].step)
        result[param] = failed, held
    return result


def failures(train, params=GENERAL):
    return [failed for failed, _ in found(train, params).values()]


def healthy():
    model, optimizer = parts()
    loader = shuffled()
    for _ in range(3):
        model.train()
        for x, _ in loader:
            step(model, optimizer, x)
        with torch.no_grad():
            model.eval()
            for x, _ in DataLoader(DATA, batch_size=16):
                model(x)


def test_each_healthy_step_is_evidence():
    held = found(healthy, (*GENERAL, NET))

    assert held == {FOLLOWING: ([], 15), ORDERS: ([], 12), STATES: ([], 17), NET: ([], 15)}


def test_the_same_batch_in_each_step():
    def train():
        model, optimizer = parts()
        for _ in shuffled():
            step(model, optimizer, DATA.tensors[0][:16])

    assert found(train, (FOLLOWING, NET)) == {
        FOLLOWING: ([1, 2, 3, 4, 5], 0),
        NET: ([1, 2, 3, 4, 5], 0),
    }


def test_the_same_input_without_a_loader_is_a_matter_of_the_pipeline():
    def train():
        model, optimizer = parts(rate=0.0)
        for _ in range(4):
            step(model, optimizer, torch.ones(16, 4))

    assert failures(train, (*GENERAL, NET)) == [[], [], [], [1, 2, 3]]


def test_a_seed_that_is_set_in_each_step():
    def train():
        model, optimizer = parts()
        for x, _ in shuffled():
            torch.manual_seed(0)
            step(model, optimizer, x)

    assert failures(train) == [[], [], [1, 2, 3, 4, 5]]


def test_a_seed_that_is_set_in_each_epoch():
    def train():
        model, optimizer = parts()
        loader = shuffled()
        for _ in range(2):
            torch.manual_seed(0)
            for x, _ in loader:
                step(model, optimizer, x)

    following, orders, states = failures(train)
    assert following == []
    assert orders == [6, 7, 8, 9, 10, 11]
    # The others go on from there: nobody has been elsewhere since.
    assert states == [6]


def test_random_numbers_that_are_put_back_around_each_step():
    def train():
        model, optimizer = parts()
        for x, _ in shuffled():
            with torch.random.fork_rng():
                step(model, optimizer, x)

    assert failures(train) == [[], [], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("is_told", [True, False])
def test_a_distributed_sampler_that_is_not_told_the_epoch(is_told):
    def train():
        model, optimizer = parts()
        sampler = DistributedSampler(DATA, num_replicas=2, rank=1)
        loader = DataLoader(DATA, batch_size=8, sampler=sampler)
        for epoch in range(2):
            if is_told:
                sampler.set_epoch(epoch)
            for x, _ in loader:
                step(model, optimizer, x)

    assert failures(train, (ORDERS,)) == [[] if is_told else [6, 7, 8, 9, 10, 11]]


def test_the_cause_names_set_epoch():
    def train():
        model, optimizer = parts()
        loader = DataLoader(DATA, batch_size=8, sampler=DistributedSampler(DATA, 2, 0))
        for _ in range(2):
            for x, _ in loader:
                step(model, optimizer, x)

    monitor = RELATION.monitor((ORDERS,))
    for window in record(train, LIFECYCLE).windows:
        examples = monitor.observe(window)
        if not examples.holds.all():
            assert "set_epoch was not called" in examples.explain(0).cause.text
            return
    pytest.fail("nothing was found")


class Noisy(Dataset):
    """Samples that are never the same twice."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return DATA[index][0] + torch.randn(4), DATA[index][1]


class Drawn(Sampler):
    """Batches that are drawn from a generator of its own, which may begin anew each time."""

    def __init__(self, *, reseeds):
        self.reseeds = reseeds
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self):
        if self.reseeds:
            self.generator.manual_seed(0)
        for _ in range(6):
            yield torch.randperm(len(DATA), generator=self.generator)[:16].tolist()

    def __len__(self):
        return 6


def own_sampler(*, reseeds):
    model, optimizer = parts()
    loader = DataLoader(Noisy(), batch_sampler=Drawn(reseeds=reseeds))
    for _ in range(2):
        for x, _ in loader:
            step(model, optimizer, x)


def test_a_sampler_of_its_own_that_begins_anew():
    proposer = RELATION.proposer()
    for window in record(lambda: own_sampler(reseeds=False), LIFECYCLE).windows:
        proposer.observe(window)
    known = [hypothesis.params[0] for hypothesis in proposer.hypotheses()]
    loaders = [param for param in known if isinstance(param, VarNameParam) and param != NET]
    [loader] = loaders
    assert RELATION.describe((loader,)).endswith("delivers in another order each time")

    assert found(lambda: own_sampler(reseeds=False), loaders) == {loader: ([], 6)}
    # Two batches are none by chance.
    assert failures(lambda: own_sampler(reseeds=True), loaders) == [[7, 8, 9, 10, 11]]
    assert failures(lambda: own_sampler(reseeds=True), (ORDERS,)) == [[]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_started_for_each_batch(workers):
    def train(seeded):
        model, optimizer = parts()
        loader = DataLoader(Noisy(), batch_size=16, shuffle=True, num_workers=workers)
        for _ in range(3):
            if seeded:
                torch.manual_seed(0)
            step(model, optimizer, next(iter(loader))[0])

    assert failures(lambda: train(True), (ORDERS,)) == [[1, 2]]
    assert failures(lambda: train(False), (ORDERS,)) == [[]]


def several_fits_with_one_seed():
    loader = shuffled()
    for _ in range(3):
        torch.manual_seed(0)
        model, optimizer = parts()
        for x, _ in loader:
            step(model, optimizer, x)


def models_made_beforehand():
    loader = shuffled()
    for model, optimizer in [parts() for _ in range(3)]:
        torch.manual_seed(0)
        for x, _ in loader:
            step(model, optimizer, x)


def going_back_to_a_checkpoint():
    model, optimizer = parts()
    loader = shuffled()
    saved = optimizer.state_dict(), torch.get_rng_state()
    for _ in range(2):
        optimizer.load_state_dict(saved[0])
        torch.set_rng_state(saved[1])
        for x, _ in loader:
            step(model, optimizer, x)


def full_batch():
    model, optimizer = parts()
    for _ in range(4):
        for x, _ in DataLoader(DATA, batch_size=96):
            step(model, optimizer, x)


def full_batch_beside_an_evaluation_that_shuffles():
    model, optimizer = parts()
    x = torch.randn(16, 4)
    for _ in range(4):
        step(model.train(), optimizer, x)
        with torch.no_grad():
            model.eval()
            for batch, _ in shuffled():
                model(batch)


def one_batch_by_heart():
    model, optimizer = parts()
    x, _ = next(iter(shuffled()))
    for _ in range(6):
        step(model, optimizer, x)


def several_steps_with_one_batch():
    model, optimizer = parts()
    for x, _ in shuffled():
        for _ in range(3):
            step(model, optimizer, x)


def without_shuffling():
    model, optimizer = parts()
    for _ in range(3):
        for x, _ in DataLoader(DATA, batch_size=16):
            step(model, optimizer, x)


def closures():
    model = Net(rate=0.0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-4, max_iter=4)
    for x, _ in shuffled():

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def two_forwards_with_the_same_dropout():
    model, optimizer = parts()
    for x, _ in shuffled():
        optimizer.zero_grad()
        state = torch.get_rng_state()
        model(x).sum().backward()
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        model(x).sum().backward()
        torch.set_rng_state(after)
        optimizer.step()


def evaluation_that_is_always_the_same():
    model, optimizer = parts()
    sampler = DistributedSampler(DATA, 2, 0)  # shuffles, and nobody tells it the epoch
    for _ in range(3):
        for x, _ in shuffled():
            step(model.train(), optimizer, x)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model.eval()
            for x, _ in DataLoader(DATA, batch_size=16, sampler=sampler):
                model(x + torch.randn_like(x))
            for x, _ in DataLoader(DATA, batch_size=48, shuffle=True):
                model(x)


def a_seed_that_nothing_uses():
    model, optimizer = parts(rate=0.0)
    for x, _ in DataLoader(DATA, batch_size=16):
        torch.manual_seed(0)
        step(model, optimizer, x)


def few_samples_that_are_alike():
    model, optimizer = parts(rate=0.0)
    data = TensorDataset(torch.tensor([[0.0, 1, 0, 1]]).repeat(64, 1), torch.zeros(64))
    loader = DataLoader(data, batch_size=16, shuffle=True)
    for _ in range(3):
        for x, _ in loader:
            step(model, optimizer, x)


def a_graph_and_a_loader_of_its_nodes():
    model, optimizer = parts()
    graph = torch.randn(100, 4)
    for nodes in DataLoader(torch.arange(96), batch_size=16, shuffle=True):
        optimizer.zero_grad()
        model(graph)[nodes].sum().backward()
        optimizer.step()


def steps_that_add_up_micro_batches():
    model, optimizer = parts()
    for number, (x, _) in enumerate(DataLoader(DATA, batch_size=12, shuffle=True)):
        model(x).sum().backward()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


def one_sample_at_a_time():
    model, optimizer = parts()
    data = TensorDataset(torch.randn(3, 40)[:, :4], torch.zeros(3))
    loader = DataLoader(data, batch_size=1, shuffle=True)
    for _ in range(12):
        for x, _ in loader:
            step(model, optimizer, x)


@pytest.mark.parametrize(
    "train",
    [
        several_fits_with_one_seed,
        models_made_beforehand,
        going_back_to_a_checkpoint,
        full_batch,
        full_batch_beside_an_evaluation_that_shuffles,
        one_batch_by_heart,
        several_steps_with_one_batch,
        without_shuffling,
        closures,
        two_forwards_with_the_same_dropout,
        evaluation_that_is_always_the_same,
        a_seed_that_nothing_uses,
        few_samples_that_are_alike,
        a_graph_and_a_loader_of_its_nodes,
        steps_that_add_up_micro_batches,
        one_sample_at_a_time,
    ],
)
def test_unusual_healthy_training_is_silent(train):
    assert failures(train) == [[], [], []]


def state_windows(states, cuts=(), name="cpu"):
    """Tell forwards that begin and end with the given random states, one a step."""
    run = RunBuilder()
    codes = run.parameters(name, kind="generator", owner="torch")
    windows = []
    for number, (begin, end) in enumerate(states):
        if number in cuts:
            windows.append(run.window())
        run.at(stage="training", step=number)
        with run.calling("net.Net.forward", object="net.Net#0"):
            run.frame("begin", codes, data=[begin])
            run.frame("end", codes, data=[end])
    windows.append(run.window())
    return windows


def naive(states):
    """Return whether each forward holds, of those that are examples."""
    result = []
    for number, (begin, _) in enumerate(states):
        earlier = [one for one, _ in states[:number]]
        if begin not in earlier:
            result += [True] if earlier else []
        elif begin != states[number - 1][1]:
            result.append(False)
    return result


@pytest.mark.parametrize("seed", range(20))
def test_states_as_a_naive_reference_has_them(seed):
    draw = random.Random(seed)  # noqa: S311
    states = [(draw.randrange(1, 6), draw.randrange(1, 6)) for _ in range(12)]
    cuts = sorted(draw.sample(range(1, 12), 3))

    held = [holds for _, holds in labels(RELATION, (STATES,), state_windows(states, cuts))]

    assert held == naive(states)


@pytest.mark.parametrize(
    ("name", "states", "expected"),
    [
        # Each evaluation seeds it, and one draws more than the other.
        ("numpy", [1, 1, 1, 2, 2, 2, 3, 3, 3, 2, 2, 2], []),
        # Samples are augmented with it, and it is seeded anew in each epoch.
        ("numpy", [1, 2, 3, 4, 1, 2, 3, 4], [True] * 3 + [False] * 4),
        # Loaders draw once in an epoch.
        ("cpu", [1, 1, 1, 2, 2, 2, 1, 1, 1], [True, False]),
    ],
)
def test_a_generator_that_training_does_not_draw_from_may_return(name, states, expected):
    windows = state_windows([(state, state) for state in states], name=name)
    assert [holds for _, holds in labels(RELATION, (STATES,), windows)] == expected


def test_proposed_is_what_is_seen():
    proposer = RELATION.proposer()
    for window in record(healthy, LIFECYCLE).windows:
        proposer.observe(window)

    expected = {Hypothesis(relation=RELATION.name, params=(p,)) for p in (*GENERAL, NET)}
    assert set(proposer.hypotheses()) == expected


def test_other_parameters_are_refused():
    for params in ((), (VarTypeParam(var_type=VAR_TYPES["input"], attr_name="data"),)):
        with pytest.raises(InvariantError, match="expects one VarTypeParam"):
            RELATION.monitor(params)


def test_all_that_a_rule_needs_is_in_the_full_plan():
    for param in (*GENERAL, NET):
        plan = RELATION.needs((param,))
        assert plan.functions == frozenset()
        assert LIFECYCLE.covers(plan)
        assert plan.attributes
