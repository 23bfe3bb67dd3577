"""watch(): a plain loop, watched live, learned from, stopped, and left as it was."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.recorder.test_harmless import state_of_the_world
from traincheck_plugin import ConfigError, InvariantError, ViolationError, watch
from traincheck_plugin.checker.check import check
from traincheck_plugin.checker.violation import Violation
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants, load_invariants
from traincheck_plugin.recorder.sampling import Sampler, Sampling
from traincheck_plugin.report.report import Report
from traincheck_plugin.session.monitor import Monitor
from traincheck_plugin.trace.reader import open_run

STEPS = 24


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def steps(model, optimizer, bug="", from_step=0, num_steps=STEPS):
    """Train; yield the loss after each step."""
    data = torch.Generator().manual_seed(1)
    if bug == "frozen":
        model.requires_grad_(False)
    for step in range(num_steps):
        x = torch.randn(16, 8, generator=data)
        is_buggy = step >= from_step
        if not (bug == "no_zero_grad" and is_buggy):
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        if bug == "frozen":
            loss = loss + torch.zeros((), requires_grad=True)
        loss.backward()
        optimizer.step()
        yield loss.item()


def train(model, optimizer, **options):
    return list(steps(model, optimizer, **options))


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """Invariants of a healthy run."""
    folder = tmp_path_factory.mktemp("reference")
    model, optimizer = build()
    with watch(model, optimizer, output_dir=folder / "trace", log=False):
        train(model, optimizer)
    file = folder / "invariants.json"
    dump_invariants(infer([open_run(folder / "trace")]).invariants, file)
    return file


def essence(violations):
    """What two reports of one run agree on."""
    return sorted(
        (
            v.invariant.relation,
            str(v.invariant.params),
            v.step,
            v.rank,
            v.stage,
            v.message,
            v.source,
        )
        for v in violations
    )


def test_a_healthy_run_is_silent_and_really_checked(rules):
    model, optimizer = build()
    with watch(model, optimizer, invariants=rules) as monitor:
        train(model, optimizer)

    assert monitor.report.violations == ()
    assert monitor.report.problems == ()
    assert monitor.report.totals.num_passed >= 4
    assert monitor.report.num_steps == STEPS
    assert "no violation in " in monitor.report.summary()
    assert monitor.metrics["traincheck/violations"] == 0
    assert monitor.metrics["traincheck/overhead"] > 0


def test_the_bundled_invariants_are_the_default():
    model, optimizer = build()
    with watch(model, optimizer, log=False) as monitor:
        train(model, optimizer, bug="no_zero_grad")

    (violation,) = monitor.report.violations
    assert violation.severity == "critical"
    assert violation.step == 1
    assert violation.source.endswith("in steps")
    assert "zero_grad was not called" in violation.cause.text


def test_a_violation_is_told_once_before_the_next_step_ends(rules):
    model, optimizer = build()
    told = []
    num_done = 0
    with watch(
        model,
        optimizer,
        invariants=rules,
        on_violation=lambda diagnosis: told.append((num_done, diagnosis)),
    ):
        for _ in steps(model, optimizer, bug="no_zero_grad", from_step=5):
            num_done += 1

    ((moment, diagnosis),) = told
    # The gradients of step 4 meet those of step 5; told when step 6 has begun and not ended.
    assert (diagnosis.first.step, moment) == (5, 6)


def test_it_is_said_in_the_log_once_and_summed_up(rules, caplog):
    model, optimizer = build()
    with caplog.at_level(logging.INFO, "traincheck"), watch(model, optimizer, invariants=rules):
        train(model, optimizer, bug="frozen")

    block, *_, summary = [record.getMessage() for record in caplog.records]
    assert block.startswith("CRITICAL  ")
    assert "Adam.step updated 0 of 6 parameters" in block
    assert "have requires_grad=False" in block
    assert "step 0, epoch 0, training, rank 0" in block
    assert "test_watch.py:" in block
    assert summary.startswith("1 critical")
    assert "never triggered" in summary
    assert len(caplog.records) <= 3


def test_without_configured_logging_it_is_said_on_stderr(rules, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("traincheck"), "hasHandlers", lambda: False)
    model, optimizer = build()
    with watch(model, optimizer, invariants=rules):
        train(model, optimizer)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("traincheck: no violation in ")


def test_with_log_off_nothing_is_said(rules, caplog, capsys):
    model, optimizer = build()
    with watch(model, optimizer, invariants=rules, log=False):
        train(model, optimizer, bug="frozen")
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_raise_raises_within_the_next_step(rules):
    model, optimizer = build()
    done = []
    with (
        pytest.raises(ViolationError, match=r"never cleared between two calls of Adam\.step"),
        watch(model, optimizer, invariants=rules, on_violation="raise", log=False),
    ):
        done.extend(steps(model, optimizer, bug="no_zero_grad"))
    assert len(done) == 2


def test_stop_leaves_the_block(rules):
    model, optimizer = build()
    done = []
    with watch(model, optimizer, invariants=rules, on_violation="stop", log=False) as monitor:
        done.extend(steps(model, optimizer, bug="no_zero_grad"))
    assert len(done) == 2
    assert monitor.should_stop
    assert monitor.report.violations


def test_what_a_function_raises_goes_into_the_training(rules):
    def refuse(diagnosis):
        raise RuntimeError("enough")

    model, optimizer = build()
    with (
        pytest.raises(RuntimeError, match="enough"),
        watch(model, optimizer, invariants=rules, on_violation=refuse, log=False),
    ):
        train(model, optimizer, bug="no_zero_grad")


@pytest.mark.parametrize("bug", ["", "no_zero_grad", "frozen"])
def test_live_and_offline_agree(rules, tmp_path, bug):
    model, optimizer = build()
    with watch(
        model, optimizer, invariants=rules, output_dir=tmp_path / "trace", log=False
    ) as monitor:
        train(model, optimizer, bug=bug)
    live = [v for o in monitor.report.result.outcomes for v in o.violations]
    offline = check(open_run(tmp_path / "trace"), load_invariants(rules))

    assert essence(live) == essence(v for o in offline.outcomes for v in o.violations)
    assert bool(live) == bool(bug)
    assert [o.status for o in monitor.report.result.outcomes] == [
        o.status for o in offline.outcomes
    ]


@pytest.mark.parametrize("bug", ["", "no_zero_grad"])
def test_losses_weights_and_random_state_are_bit_identical(rules, tmp_path, bug):
    model, optimizer = build()
    expected = train(model, optimizer, bug=bug)
    wanted = [p.clone() for p in model.state_dict().values()], torch.get_rng_state()
    for options in ({"invariants": rules}, {"output_dir": tmp_path / "trace"}, {}):
        model, optimizer = build()
        with watch(model, optimizer, **options, log=False):
            assert train(model, optimizer, bug=bug) == expected
        assert all(map(torch.equal, model.state_dict().values(), wanted[0]))
        assert torch.equal(torch.get_rng_state(), wanted[1])


@pytest.mark.parametrize("error", [None, ValueError("mine"), KeyboardInterrupt()])
def test_nothing_is_left_behind(rules, tmp_path, error):
    model, optimizer = build()
    before = state_of_the_world(), threading.enumerate(), logging.root.handlers[:]

    def run():
        with watch(model, optimizer, invariants=rules, output_dir=tmp_path / "trace", log=False):
            for number, _ in enumerate(steps(model, optimizer)):
                if error is not None and number == 3:
                    raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert (state_of_the_world(), threading.enumerate(), logging.root.handlers) == before
    end = open_run(tmp_path / "trace").ranks[0].end.outcome.how
    assert end == {type(None): "finished", ValueError: "exception"}.get(type(error), "interrupted")


def test_the_kill_switch(monkeypatch, rules):
    monkeypatch.setenv("TRAINCHECK_DISABLE", "1")
    model, optimizer = build()
    with watch(model, optimizer, invariants=rules) as monitor:
        train(model, optimizer, bug="frozen")
    assert not monitor.report.violations
    assert monitor.report.num_steps == 0


def test_the_environment_says_what_the_code_does_not(monkeypatch, rules, tmp_path):
    monkeypatch.setenv("TRAINCHECK_INVARIANTS", str(rules))
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", str(tmp_path / "trace"))
    model, optimizer = build()
    with watch(log=False) as monitor:
        train(model, optimizer)
    assert len(monitor.report.invariants) == len(load_invariants(rules))
    assert open_run(tmp_path / "trace").ranks[0].end.num_windows > STEPS // 2


def test_a_second_run_gets_a_trace_of_its_own(tmp_path):
    for _ in range(2):
        model, optimizer = build()
        with watch(model, optimizer, output_dir=tmp_path / "trace", log=False):
            train(model, optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {"trace", "trace-2"}
    assert open_run(tmp_path / "trace-2").ranks[0].end.outcome.how == "finished"


def test_a_monitor_can_watch_again(rules):
    monitor = watch(invariants=rules, log=False)
    for bug in ("frozen", ""):
        model, optimizer = build()
        with monitor:
            train(model, optimizer, bug=bug)
        assert bool(monitor.report.violations) == bool(bug)


def test_only_given_models_and_variables_are_watched(tmp_path):
    model, optimizer = build()
    with watch(model, optimizer, output_dir=tmp_path / "trace", parameters="*.weight", log=False):
        train(model, optimizer)
        nn.Linear(2, 2)(torch.ones(1, 2))
    (rank,) = open_run(tmp_path / "trace").ranks
    names = {
        v.name for window in rank.windows() for v in window.catalog.variables
        if v.kind == "parameter"
    }  # fmt: skip
    assert names == {"0.weight", "1.weight", "3.weight"}


def test_a_failing_checker_does_not_read_as_healthy(rules, monkeypatch):
    from traincheck_plugin.checker.rank_check import RankCheck

    def fail(self, window):
        raise RuntimeError("broken")

    monkeypatch.setattr(RankCheck, "observe", fail)
    model, optimizer = build()
    with watch(model, optimizer, invariants=rules, log=False) as monitor:
        assert len(train(model, optimizer)) == STEPS
    assert any("LiveCheck failed" in problem for problem in monitor.report.problems)
    assert "no violation in" not in monitor.report.summary()


def test_a_run_within_a_run_says_that_it_is_not_watched(rules):
    model, optimizer = build()
    with watch(model, optimizer, log=False), watch(invariants=rules, log=False) as inner:
        train(model, optimizer)
    assert any("one is running" in problem for problem in inner.report.problems)
    assert "nothing was checked" in inner.report.summary()


def test_the_report_can_be_written(rules, tmp_path):
    model, optimizer = build()
    with watch(model, optimizer, invariants=rules, log=False) as monitor:
        train(model, optimizer, bug="frozen")
    folder = monitor.report.write(tmp_path)
    assert {path.name for path in folder.iterdir()} >= {"failed.log", "report.html"}
    assert "Adam.step updated 0 of 6 parameters" in monitor.report.html()
    assert all(isinstance(violation, Violation) for violation in monitor.report.violations)


def test_steps_go_on_from_where_a_resumed_run_was(rules):
    model, optimizer = build()
    monitor = watch(model, optimizer, invariants=rules, log=False)
    with monitor:
        train(model, optimizer)
    state = monitor.state_dict()
    assert state == {"step": STEPS}
    resumed = Monitor(replace(monitor.options), models=[model], optimizers=[optimizer])
    resumed.load_state_dict(state)
    with resumed:
        train(model, optimizer, bug="no_zero_grad")
    assert resumed.report.violations[0].step in (STEPS, STEPS + 1)
    for nonsense in ({}, {"step": "x"}, {"step": -1}, {"other": 1}):
        resumed.load_state_dict(nonsense)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_violation": "panic"}, "expected on_violation to be 'warn', 'stop', 'raise'"),
        ({"max_overhead": 0}, "expected max_overhead to be a share above 0"),
        ({"every_n_steps": 0}, "expected every_n_steps to be at least 1"),
        ({"warm_up_steps": -1}, "expected warm_up_steps to be 0 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        watch(**options)


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigError, match="expected models and optimizers of torch, got a list"):
        watch([1, 2])


def test_a_missing_file_is_told_at_the_start():
    with pytest.raises(InvariantError, match=r"nowhere\.json: expected a file of invariants"):
        watch(invariants="nowhere.json").start()


class TestSampler:
    def test_the_first_steps_are_all_watched(self):
        sampler = Sampler(Sampling(interval=None, warm_up_steps=3, max_overhead=0.01))
        assert all(sampler.observes(step, step * 1000, step * 1000) for step in range(3))
        assert not sampler.observes(3, 3000, 3000)

    @pytest.mark.parametrize("budget", [0.01, 0.05, 0.5])
    @pytest.mark.parametrize("cost", [1, 30, 400])
    def test_the_budget_is_kept_and_used(self, budget, cost):
        sampler = Sampler(Sampling(interval=None, warm_up_steps=2, max_overhead=budget))
        now = spent = watched = start = 0
        for step in range(20_000):
            if step == 2:
                start, baseline = now, spent
            is_watched = sampler.observes(step, spent, now)
            watched += is_watched
            spent += cost * is_watched
            now += 100 + cost * is_watched
        share = (spent - baseline) / (now - start)
        assert share <= budget
        assert share >= 0.8 * min(budget, cost / (100 + cost))

    def test_an_interval_is_followed_whatever_it_costs(self):
        sampler = Sampler(Sampling(interval=5, warm_up_steps=1))
        seen = [step for step in range(20) if sampler.observes(step, step * 100, step)]
        assert seen == [0, 5, 10, 15]

    def test_attention_lasts_for_the_warm_up(self):
        sampler = Sampler(Sampling(interval=1000, warm_up_steps=4))
        sampler.attend(50)
        assert [step for step in range(50, 60) if sampler.observes(step, 0, 0)] == [50, 51, 52, 53]


def test_every_n_steps_fixes_the_sampling(rules):
    model, optimizer = build()
    with watch(
        model, optimizer, invariants=rules, every_n_steps=6, warm_up_steps=2, log=False
    ) as monitor:
        train(model, optimizer)
    # 0 and 1, then 6, 12 and 18.
    assert monitor.report.result.num_steps == 5
    assert "5 steps watched" in monitor.report.summary() or "5 watched of 24 steps" in (
        monitor.report.summary()
    )


def test_a_summary_that_fails_is_told_and_does_not_end_the_training(rules, monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("broken")

    monkeypatch.setattr(Report, "summary", fail)
    model, optimizer = build()
    with caplog.at_level(logging.INFO, "traincheck"), watch(model, optimizer, invariants=rules):
        assert len(train(model, optimizer)) == STEPS
    assert "checker error: the run could not be summed up" in caplog.text


class Reader(nn.Module):
    """Reads short sequences, or the samples of a batch."""

    def __init__(self, *, is_right):
        super().__init__()
        self.recurrent = nn.GRU(5, 8, batch_first=is_right)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0].mean(1))


@pytest.mark.parametrize(
    ("bug", "causes"),
    [
        ("", []),
        ("axis", ["goes along the samples of a batch in place of their sequences"]),
        ("one sample", ["learns from one sample over and over"]),
    ],
)
def test_the_bundled_invariants_look_at_the_samples(bug, causes):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(60, 9, 5), torch.randint(3, (60,)))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    model = Reader(is_right=bug != "axis")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, log=False) as monitor:
        for x, y in loader:
            if bug == "one sample":
                x = x[:1].expand_as(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    told = [diagnosis.cause for diagnosis in monitor.report.diagnoses]
    assert len(told) == len(causes)
    assert all(cause in one for cause, one in zip(causes, told, strict=True))
