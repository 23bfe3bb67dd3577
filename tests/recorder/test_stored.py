"""What data sets store is found, and told apart from what it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import stored as stored_module
from traincheck_plugin.recorder.stored import MAX_BYTES, MAX_STORED, stored_in


class Images(Dataset):
    def __init__(self):
        self.images = np.zeros((40, 8, 8), np.float32)
        self.labels = [torch.tensor(number) for number in range(40)]
        self.rows = [{"ids": [number, number + 1]} for number in range(40)]
        self.epoch = 3
        self.transform = lambda image: image
        self.generator = np.random.default_rng(0)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def keys(dataset):
    return {one.path: one.key for one in stored_in(dataset)}


def test_arrays_and_lists_are_found():
    assert list(keys(Images())) == ["images", "labels", "rows"]
    tensors = TensorDataset(torch.ones(4, 2), torch.arange(4))
    assert list(keys(tensors)) == ["tensors.0", "tensors.1"]
    assert list(keys(Subset(tensors, range(2)))) == ["dataset.tensors.0", "dataset.tensors.1"]
    both = ConcatDataset([tensors, Images()])
    assert [path for path in keys(both) if path.startswith("datasets.1.")] == [
        "datasets.1.images",
        "datasets.1.labels",
        "datasets.1.rows",
    ]
    assert list(keys([(torch.ones(2), 1), (torch.zeros(2), 0)])) == [""]
    assert len(keys(TensorDataset(*[torch.ones(3)] * 20))) == MAX_STORED


@pytest.mark.parametrize(
    "dataset", [Images.__new__(Images), range(5), object(), [object()], TensorDataset()]
)
def test_of_others_nothing_is_told(dataset):
    assert stored_in(dataset) == []


def _write_image(data):
    data.images[7, 3, 3] += 1


def _write_label(data):
    data.labels[2].add_(1)


def _append(data):
    data.rows[11]["ids"] += [0]


@pytest.mark.parametrize(
    ("write", "changed"), [(_write_image, "images"), (_write_label, "labels"), (_append, "rows")]
)
def test_what_is_changed_in_place_is_told(write, changed):
    data = Images()
    before = keys(data)
    assert keys(data) == before
    write(data)
    after = keys(data)
    assert {path for path in before if before[path] != after[path]} == {changed}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_of_large_arrays_some_is_read(dtype):
    data = TensorDataset(torch.zeros(64, MAX_BYTES, dtype=dtype))
    before = keys(data)
    data.tensors[0][3] = 1
    assert keys(data) == before
    data.tensors[0][4] = 1
    assert keys(data) != before


def test_a_loader_tells_what_its_data_set_stores():
    def train():
        model = torch.nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = Images()
        for images, _ in DataLoader(data, batch_size=20):
            data.images += 1
            optimizer.zero_grad()
            model(images).sum().backward()
            optimizer.step()

    recording = record(train, LIFECYCLE)
    told = [
        (window.catalog.variables[int(code)], key)
        for window in recording.windows
        for frame in window.frames
        if window.kind(frame) == "stored"
        for code, key in zip(frame.variables, frame.columns["data"].tolist(), strict=True)
    ]
    assert [variable.name for variable, _ in told] == ["images", "labels", "rows"] * 2
    assert told[0][0].type == f"{__name__}.Images"
    assert told[0][1] != told[3][1]
    assert [key for _, key in told[1:3]] == [key for _, key in told[4:]]


def test_of_many_values_some_are_read(monkeypatch):
    monkeypatch.setattr(stored_module, "MAX_VALUES", 10)
    data = [[number] for number in range(40)]
    before = keys(data)
    data[30][0] += 1
    assert keys(data) == before
    data[3][0] += 1
    assert keys(data) == before
    data.append([0])
    assert keys(data) != before
    monkeypatch.setattr(stored_module, "MAX_VALUES", 1000)
    before = keys(data)
    data[30][0] += 1
    assert keys(data) != before


class Erased(Dataset):
    """A row for each sample, into which reading one writes where *in_place*."""

    def __init__(self, *, in_place):
        self.in_place = in_place
        self.images = torch.ones(8, 3)
        self.labels = torch.zeros(8)
        self.scratch = np.zeros((2, 3))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        image = image if self.in_place else image.clone()
        image[index % 3] = 0
        self.scratch += 1
        self.labels += 1
        return image, self.labels[index]


@pytest.mark.parametrize(("in_place", "expected"), [(True, 1.0), (False, 0.0)])
def test_it_is_told_whether_reading_changes_samples(in_place, expected):
    def train():
        for _ in DataLoader(Erased(in_place=in_place), batch_size=4):
            pass

    told = {
        (window.catalog.variables[code].name, value)
        for window in record(train, LIFECYCLE).windows
        for frame in window.frames
        if window.kind(frame) == "stored"
        for code, value in zip(
            frame.variables.tolist(), frame.columns["value"].tolist(), strict=True
        )
        if value == value
    }
    # A buffer to work in has no row for each sample.
    assert told == {("images", expected)}


class Cached(Dataset):
    """Computes each sample once, and keeps it."""

    def __init__(self, shape):
        self.cache = np.zeros((8, *shape), np.float32)

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, index):
        if not self.cache[index].any():
            self.cache[index] = index + 1
        return self.cache[index]


@pytest.mark.parametrize("shape", [(3,), (MAX_BYTES, 2)])
def test_a_cache_that_is_filled_is_not_changed(shape):
    data = Cached(shape)
    [before] = stored_in(data, only_samples=True)
    data[3]
    [after] = stored_in(data, only_samples=True)
    assert after.key != before.key
    assert not after.changed(before)
    data.cache[3] += 1
    [last] = stored_in(data, only_samples=True)
    assert last.changed(after)


def test_of_samples_alone_less_is_read():
    plan = Plan(functions=frozenset(), attributes={"data": frozenset({("stored", "value")})})

    def train():
        for _ in DataLoader(Images(), batch_size=20):
            pass

    [first, second] = [
        frame
        for window in record(train, plan).windows
        for frame in window.frames
        if window.kind(frame) == "stored"
    ]
    assert first.columns.keys() == {"value"}
    assert first.columns["value"].tolist() == second.columns["value"].tolist() == [0.0]


class Unsized(Dataset):
    def __init__(self):
        self.images = torch.ones(8, 3)

    def __len__(self):
        raise NotImplementedError

    def __getitem__(self, index):
        return self.images[index]


def test_a_data_set_that_does_not_know_its_length_tells_no_samples():
    [images] = stored_in(Unsized())
    assert not images.has_samples
    assert stored_in(Unsized(), only_samples=True) == []
