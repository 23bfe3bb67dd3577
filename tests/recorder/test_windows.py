"""Where windows begin and end, and what the contexts of their calls say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.recorder.recording import (
    CALLS_ONLY,
    batches,
    calls_of,
    make_loader,
    make_model,
    record,
)
from traincheck_plugin.recorder import Sampling, reel, tape
from traincheck_plugin.recorder.columns import DeviceReader
from traincheck_plugin.recorder.readings import DeviceReadings

STEP = "zero_grad forward backward step"


def windows(train, **options):
    return record(train, CALLS_ONLY, **options)


def test_a_loop_over_a_loader():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        for _ in range(2):
            for (batch,) in make_loader(2):
                optimizer.zero_grad()
                model(batch).sum().backward()
                optimizer.step()

    recording = windows(train)

    assert recording.roles_by_window() == [
        "seed construct mode",
        f"data data {STEP}",
        f"data {STEP}",
        f"data data {STEP}",
        f"data {STEP}",
    ]
    steps = recording.of_role("step")
    assert [call.context.step for call in steps] == [0, 1, 2, 3]
    assert {call.context.steps_since_clear for call in steps} == {0}
    assert [c.context.steps_since_clear for c in recording.of_role("zero_grad")] == [0, 1, 1, 1]
    assert [call.context.stage for call in calls_of(recording.windows[0])] == ["init"] * 3


@pytest.mark.parametrize("order", ["clear first", "forward first", "clear last", "module clears"])
def test_a_loop_over_tensors(order):
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches(3):
            if order == "clear first":
                optimizer.zero_grad()
            loss = model(batch).sum()
            if order == "forward first":
                optimizer.zero_grad()
            if order == "module clears":
                model.zero_grad()
            loss.backward()
            optimizer.step()
            if order == "clear last":
                optimizer.zero_grad()

    recording = windows(train)

    first = {
        "clear first": ["zero_grad forward backward step"] * 3,
        "forward first": ["forward zero_grad backward step"] * 3,
        "module clears": ["forward zero_grad backward step"] * 3,
        "clear last": [
            "forward backward step",
            "zero_grad forward backward step",
            "zero_grad forward backward step",
            "zero_grad",
        ],
    }[order]
    assert recording.roles_by_window() == ["seed construct", *first]
    for window in recording.windows[1:]:
        assert len({call.context.step for call in calls_of(window)}) == 1
    assert [call.context.step for call in recording.of_role("step")] == [0, 1, 2]
    since = [call.context.steps_since_clear for call in recording.of_role("step")]
    assert since == [0, 0, 0]


def test_steps_without_clearing_are_counted():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(3):
            model(batch).sum().backward()
            optimizer.step()

    recording = windows(train)

    assert [c.context.steps_since_clear for c in recording.of_role("step")] == [0, 1, 2]


def test_accumulation_with_an_uneven_tail():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = make_loader(5)
        for index, (batch,) in enumerate(loader):
            model(batch).sum().backward()
            if (index + 1) % 2 == 0 or index + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()

    recording = windows(train)

    assert recording.roles_by_window() == [
        "seed construct",
        "data data forward backward data forward backward step",
        "zero_grad data forward backward data forward backward step",
        "zero_grad data forward backward step",
        "zero_grad",
    ]
    assert [c.context.micro_step for c in recording.of_role("backward")] == [0, 1, 0, 1, 0]
    assert [c.context.micro_step for c in recording.of_role("step")] == [2, 2, 1]


@pytest.mark.parametrize("with_loader", [True, False])
def test_two_optimizers_of_one_batch_are_one_window(with_loader):
    def train():
        torch.manual_seed(0)
        generator, discriminator = nn.Linear(4, 4), nn.Linear(4, 1)
        for_d = torch.optim.Adam(discriminator.parameters())
        for_g = torch.optim.Adam(generator.parameters())
        data = (batch for (batch,) in make_loader(3)) if with_loader else iter(batches(3))
        for batch in data:
            discriminator.zero_grad()
            discriminator(batch).mean().backward()
            fake = generator(batch)
            discriminator(fake.detach()).mean().backward()
            for_d.step()
            generator.zero_grad()
            discriminator(fake).mean().backward()
            for_g.step()

    recording = windows(train)

    batch = (
        "zero_grad forward backward forward forward backward step zero_grad forward backward step"
    )
    assert recording.roles_by_window("data") == ["seed construct construct", *[batch] * 3]
    assert [call.context.step for call in recording.of_role("step")] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("with_loader", [True, False])
@pytest.mark.parametrize("cleared", ["module", "optimizer"])
def test_two_optimizers_that_clear_after_their_steps(cleared, with_loader):
    def train():
        torch.manual_seed(0)
        generator, discriminator = nn.Linear(4, 4), nn.Linear(4, 1)
        for_d = torch.optim.Adam(discriminator.parameters())
        for_g = torch.optim.Adam(generator.parameters())
        data = (batch for (batch,) in make_loader(4)) if with_loader else iter(batches(4))
        for batch in data:
            discriminator(batch).mean().backward()
            fake = generator(batch)
            discriminator(fake.detach()).mean().backward()
            for_d.step()
            (discriminator if cleared == "module" else for_d).zero_grad()
            discriminator(fake).mean().backward()
            for_g.step()
            (generator if cleared == "module" else for_g).zero_grad()

    recording = windows(train)

    batch = "forward backward forward forward backward step zero_grad forward backward step"
    assert recording.roles_by_window("data") == [
        "seed construct construct",
        batch,
        *[f"zero_grad {batch}"] * 3,
        "zero_grad",
    ]
    assert [call.context.step for call in recording.of_role("step")] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_generator_that_is_trained_less_often():
    def train():
        torch.manual_seed(0)
        generator, discriminator = nn.Linear(4, 4), nn.Linear(4, 1)
        for_d = torch.optim.SGD(discriminator.parameters())
        for_g = torch.optim.SGD(generator.parameters())
        for index, (batch,) in enumerate(make_loader(4)):
            for_d.zero_grad()
            discriminator(batch).mean().backward()
            for_d.step()
            if index % 2:
                for_g.zero_grad()
                discriminator(generator(batch)).mean().backward()
                for_g.step()

    recording = windows(train)

    less = "zero_grad forward backward step"
    more = "zero_grad forward backward step zero_grad forward forward backward step"
    assert recording.roles_by_window("data")[1:] == [less, more, less, more]


def test_validation_after_a_step_is_a_window_of_its_own():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training, validation = make_loader(2), make_loader(2)
        for _ in range(2):
            model.train()
            for (batch,) in training:
                optimizer.zero_grad()
                model(batch).sum().backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for (batch,) in validation:
                    model(batch)

    recording = windows(train)

    assert recording.roles_by_window() == [
        "seed construct mode",
        f"data data {STEP}",
        f"data {STEP}",
        "mode data data forward data forward mode",
        f"data data {STEP}",
        f"data {STEP}",
        "mode data data forward data forward",
    ]
    stages = [{c.context.stage for c in calls_of(w)} for w in recording.windows]
    assert "validation" in stages[3]
    assert all(
        call.context.stage == ("training" if call.window in (1, 2, 4, 5) else "validation")
        for call in recording.of_role("forward")
    )
    assert [call.context.epoch for call in recording.of_role("step")] == [0, 0, 1, 1]
    assert [call.context.step for call in recording.of_role("step")] == [0, 1, 2, 3]


def test_validation_in_the_middle_of_an_epoch_with_clearing_last():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        validation = make_loader(1)
        for (batch,) in make_loader(2):
            model(batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for (other,) in validation:
                    model(other)

    recording = windows(train)

    assert recording.roles_by_window() == [
        "seed construct",
        "data data forward backward step",
        "zero_grad data data forward",
        "data forward backward step",
        "zero_grad data data forward",
    ]


def test_validation_within_an_accumulation_stays_in_its_window():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first, second = batches(2)
        model(first).sum().backward()
        with torch.no_grad():
            model(first)
        model(second).sum().backward()
        optimizer.step()

    recording = windows(train)

    assert recording.roles_by_window() == [
        "seed construct",
        "forward backward forward forward backward step",
    ]
    assert [c.context.stage for c in recording.of_role("forward")] == [
        "training",
        "validation",
        "training",
    ]


def test_a_teacher_in_eval_mode_splits_nothing():
    def train():
        teacher, student = make_model().eval(), make_model()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for (batch,) in make_loader(3):
            optimizer.zero_grad()
            with torch.no_grad():
                target = teacher(batch)
            (student(batch) - target).pow(2).sum().backward()
            optimizer.step()

    recording = windows(train)

    step = "data zero_grad forward forward backward step"
    assert recording.roles_by_window()[1:] == [f"data {step}", step, step]


def test_a_closure_runs_inside_step():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(2):

            def closure(batch=batch):
                loss = model(batch).sum()
                optimizer.zero_grad()
                loss.backward()
                return loss

            optimizer.step(closure)

    recording = windows(train)

    step = "data step forward zero_grad backward"
    assert recording.roles_by_window() == ["seed construct", f"data {step}", step]
    for window in recording.windows[1:]:
        (step,) = [call for call in calls_of(window) if call.role == "step"]
        inside = [c for c in calls_of(window) if c.role in ("forward", "zero_grad", "backward")]
        assert {call.parent for call in inside} == {step.number}
        # The context is that of the moment at which the step itself began.
        assert step.context.micro_step == 1
        assert step.context.steps_since_clear == 0


def test_lbfgs_calls_its_closure_many_times_in_one_step():
    def train():
        model = make_model()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
        for batch in batches(2):

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = model(batch).pow(2).sum()
                loss.backward()
                return loss

            optimizer.step(closure)

    recording = windows(train)

    assert len(recording.of_role("backward")) > 2
    assert [w.split()[0] for w in recording.roles_by_window()] == ["seed", "step", "step"]
    assert [call.context.step for call in recording.of_role("step")] == [0, 1]


def test_a_step_that_is_never_reached_does_not_hide_what_happens():
    def train():
        model = make_model()
        torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(100):
            model(batch).sum().backward()

    recording = windows(train)

    assert len(recording.windows) == 5
    assert {call.context.step for call in recording.calls} == {0}
    assert recording.of_role("backward")[-1].context.micro_step == 99


def test_long_stretches_outside_training_are_cut():
    def train():
        model = make_model().eval()
        for batch in batches(5000):
            model(batch)

    recording = windows(train)

    assert [len(window.calls) for window in recording.windows] == [4096, 906]


def test_a_model_left_in_eval_mode_trains_all_the_same():
    def train():
        model = make_model().eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(2):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()

    recording = windows(train)

    assert recording.roles_by_window()[1:] == [f"data data {STEP}", f"data {STEP}"]
    assert {call.context.stage for call in recording.of_role("backward", "step")} == {"training"}


def test_sampling_counts_on_without_recording():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(8):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()

    recording = windows(train, sampling=Sampling(interval=3, warm_up_steps=2))

    assert [window.observed for window in recording.windows] == [
        *[True, True, True],
        # A stretch that is left out is one window.
        *[False, True, False, True, False],
    ]
    assert [call.context.step for call in recording.of_role("step")] == [0, 1, 3, 6]
    assert [c.context.steps_since_clear for c in recording.of_role("zero_grad")] == [0, 1, 1, 1]
    assert all(not len(w.calls) and not w.frames for w in recording.windows if not w.observed)


@pytest.mark.parametrize("ends_in_it", [False, True])
def test_what_is_captured_in_a_cuda_graph_is_left_out_and_nothing_is_waited_for(
    monkeypatch, ends_in_it
):
    now = {"capturing": False}
    add, resolve = DeviceReadings.add, DeviceReadings.resolve

    def unless_capturing(method):
        def checked(*args):
            assert not now["capturing"]
            return method(*args)

        return checked

    monkeypatch.setattr(DeviceReadings, "add", unless_capturing(add))
    monkeypatch.setattr(DeviceReadings, "resolve", unless_capturing(resolve))
    for module in (reel, tape):
        monkeypatch.setattr(module, "is_capturing", lambda: now["capturing"])
    # Let the recorder take the CPU for a device.
    monkeypatch.setattr(DeviceReader, "HOST", "none")

    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for number, x in enumerate(batches(9)):
            optimizer.zero_grad()
            # The capture begins and ends within steps.
            if number in (3, 6):
                now["capturing"] = number == 3 or ends_in_it
            model(x).sum().backward()
            optimizer.step()

    said = "nothing is read while a CUDA graph is captured"
    at_end = "the last step was not looked at: a CUDA graph is captured where the recording ends"
    recording = record(train, problems=[said, at_end] if ends_in_it else [said])

    assert recording.problems == ([said, at_end] if ends_in_it else [said])
    observed = [window.observed for window in recording.windows]
    # The first is before the steps. What waits where the recording ends in a capture is lost.
    if ends_in_it:
        assert observed == [True, True, True]
    else:
        assert observed == [True] * 4 + [False] * 4 + [True] * 2
        hashes = [
            frame.columns["data"]
            for window in recording.windows
            for frame in window.frames
            if "data" in frame.columns
        ]
        assert len(hashes) >= 12
        assert all((column != 0).all() for column in hashes)


def test_calls_of_other_threads_have_their_own_stack():
    import threading

    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(3):
            optimizer.zero_grad()
            loss = model(batch).sum()

            def run_elsewhere(batch=batch):
                list(make_loader(1))
                with torch.no_grad():
                    model(batch)

            thread = threading.Thread(target=run_elsewhere)
            thread.start()
            thread.join()
            loss.backward()
            optimizer.step()

    recording = windows(train)

    elsewhere = [call for call in recording.calls if call.thread]
    assert len(elsewhere) == 9
    assert {call.parent for call in elsewhere} == {-1}
    here = [call for call in recording.calls if not call.thread]
    assert {call.context.stage for call in here if call.role in ("backward", "step")} == {
        "training"
    }
    assert [call.context.step for call in recording.of_role("step")] == [0, 1, 2]
    assert len(recording.windows) == 4


def test_training_in_another_thread_than_the_recording_is_followed():
    import threading

    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(3):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()

    def start():
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()

    recording = windows(start, problems=True)

    assert len(recording.of_role("step")) == 3
    assert [call.context.step for call in recording.of_role("step")] == [0, 1, 2]
    assert len(recording.problems) == 1
    assert "another thread" in recording.problems[0]


def test_recomputed_forwards_are_part_of_backward():
    from torch.utils.checkpoint import checkpoint

    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches(2):
            loss = checkpoint(model, batch, use_reentrant=False).sum()
            loss.backward()
            optimizer.step()

    recording = windows(train)

    assert len(recording.of_role("forward")) == 2


def test_steps_that_are_left_out_cost_no_hooks_and_are_counted(monkeypatch):
    # Another test of this process may have compiled something.
    monkeypatch.setattr("traincheck_plugin.recorder.probes.modules.has_compiled", lambda: False)
    hooks = []

    def train():
        model = make_model()
        optimizers = [torch.optim.SGD(model[n].parameters(), lr=0.1) for n in (0, 2)]
        for batch in batches(10):
            for optimizer in optimizers:
                optimizer.zero_grad()
            model(batch).sum().backward()
            hooks.append(bool(torch.nn.modules.module._global_forward_hooks))
            for optimizer in optimizers:
                optimizer.step()

    recording = windows(train, sampling=Sampling(interval=8, warm_up_steps=2))

    assert [call.context.step for call in recording.of_role("step")] == [0, 0, 1, 1, 8, 8]
    assert {call.context.stage for call in recording.of_role("step")} == {"training"}
    # The first step that is left out tells that the next ones are too.
    assert hooks == [True, True, True, *[False] * 5, True, True]
