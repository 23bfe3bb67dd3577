"""Whether targets count where a mask of the inputs tells that there is padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.recorder.loss_graph import Target
from traincheck_plugin.recorder.padding import (
    MAX_BYTES,
    MAX_ROWS,
    MIN_PADDED,
    counts_padding,
    is_mask,
    padding_of,
)
from traincheck_plugin.recorder.readings import DeviceReadings

WIDTH, PAD = 10, 0
IGNORED = -100


def padded(lengths, *, left=False):
    """Return tokens that are padded, and a mask that is 1 where they are not."""
    tokens = torch.arange(len(lengths) * WIDTH).reshape(-1, WIDTH) % 7 + 2
    places = torch.arange(WIDTH).expand(len(lengths), -1)
    lengths = torch.tensor(lengths)[:, None]
    mask = places >= WIDTH - lengths if left else places < lengths
    return torch.where(mask, tokens, PAD), mask.long()


def share(labels, mask, *inputs, host="cpu", **facts):
    readings = DeviceReadings()
    target = Target("nll_loss", labels, facts.pop("ignored", IGNORED), **facts)
    found = counts_padding(target, mask, inputs, readings, host)
    if found is not None and host != "cpu":
        assert math.isnan(found[0])
        readings.resolve(readings.ticket())
    return math.nan if found is None else found[0]


def naive(labels, is_padding):
    counted = [
        label != IGNORED
        for row, row_padding in zip(labels.tolist(), is_padding.tolist(), strict=True)
        for place, label in enumerate(row[: WIDTH - 1])
        if row_padding[place] and row_padding[place + 1]
    ]
    return sum(counted) / len(counted) if len(counted) >= MIN_PADDED else math.nan


@given(st.lists(st.integers(1, WIDTH), min_size=2, max_size=6), st.booleans(), st.booleans())
def test_the_share_is_that_of_the_padding_whose_targets_count(lengths, left, is_masked):
    tokens, mask = padded(lengths, left=left)
    labels = tokens.masked_fill(mask == 0, IGNORED) if is_masked else tokens
    expected = naive(labels, mask == 0)
    for told in (mask, mask.bool(), mask == 0, mask.float()):
        np.testing.assert_equal(share(labels, told, tokens), expected)
        np.testing.assert_equal(share(labels.reshape(-1), told, tokens, told), expected)
        np.testing.assert_equal(share(labels, told, tokens, host="other"), expected)


@pytest.mark.parametrize("is_shifted_by_hand", [False, True])
def test_targets_may_be_shifted(is_shifted_by_hand):
    tokens, mask = padded([3, 10, 5])
    labels = tokens.masked_fill(mask == 0, IGNORED)
    if is_shifted_by_hand:
        assert share(labels[:, 1:].reshape(-1), mask, tokens) == 0
        assert share(tokens[:, 1:].reshape(-1), mask, tokens) == 1
    else:
        shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        assert share(shifted, mask, tokens) == 0
        # Padding on the left is where the first token is predicted.
        tokens, mask = padded([3, 10, 5], left=True)
        labels = tokens.masked_fill(mask == 0, IGNORED)
        shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        assert share(shifted, mask, tokens) == 0


def test_what_is_no_padding_tells_nothing():
    tokens, mask = padded([3, 10, 5])
    segments = (torch.arange(WIDTH) >= 4).long().expand(3, -1)
    unpadded = torch.arange(30).reshape(3, WIDTH) % 7 + 2
    holes = mask.clone()
    holes[1, 4] = 0
    values = torch.rand(3, WIDTH)
    for told, inputs in [
        # Segments of a pair, of which another segment or mask is no token.
        (segments, [unpadded, mask, segments]),
        (holes, [tokens]),
        (values, [tokens]),
        (mask * 2, [tokens]),
        (mask, [unpadded]),
        (mask, [mask.clone()]),
    ]:
        assert math.isnan(share(tokens, told, *inputs))
    # The targets of another sequence are no padding where the input is.
    assert math.isnan(share(unpadded, mask, tokens))
    assert math.isnan(share(tokens[:1], mask[:1], tokens[:1]))


def test_losses_that_cannot_leave_padding_out_are_left_alone():
    tokens, mask = padded([3, 10, 5])
    assert share(tokens, mask, tokens) == 1
    assert math.isnan(share(tokens, mask, tokens, ignored=None))
    assert math.isnan(share(tokens, mask, tokens, is_weighted=True))
    assert math.isnan(share(tokens[:, :4], mask, tokens))
    assert math.isnan(share(tokens, mask))
    # What is left out may have any number.
    assert share(tokens, mask, tokens, ignored=PAD) == 0


def test_features_may_be_padded():
    tokens, mask = padded([3, 10, 5])
    labels = tokens.masked_fill(mask == 0, 1)
    features = torch.stack([tokens * 0.5, tokens * 2.0], 2)
    assert share(labels, mask, features) == 1
    assert math.isnan(share(labels, mask, features + torch.rand(3, WIDTH, 2)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.ones(3, 4), True),
        (torch.ones(3, 4, dtype=torch.bool), True),
        (torch.ones(3, 2), False),
        (torch.ones(3, 4, 5), False),
        (torch.ones(3, 4, requires_grad=True), False),
        (torch.ones(0, 4), False),
        (torch.ones(3, 4).to_sparse(), False),
        (torch.ones(1, MAX_BYTES), False),
    ],
)
def test_what_may_be_a_mask(values, expected):
    assert is_mask(values) is expected


@given(st.lists(st.integers(1, WIDTH), min_size=2, max_size=6), st.booleans())
def test_the_padding_of_samples(lengths, left):
    tokens, mask = padded(lengths, left=left)
    numbers = [WIDTH - length for length in lengths]
    is_known = max(numbers) > 1 and len(set(numbers)) > 1 and sum(numbers) >= MIN_PADDED
    for values in (tokens, tokens.int()):
        found = padding_of(values)
        assert (found is not None) == is_known
        if found is not None:
            assert found.end == ("first" if left else "last")
            assert found.is_padded.tolist() == [number > 1 for number in numbers]
    assert padding_of(mask) is None


def test_of_many_samples_the_first_are_looked_at():
    tokens, _ = padded([2, 5] * MAX_ROWS)
    assert padding_of(tokens).is_padded.tolist() == [True] * MAX_ROWS + [False] * MAX_ROWS


def test_samples_that_are_padded_at_neither_end_or_at_both():
    tokens, _ = padded([2, 5, WIDTH])
    assert padding_of(tokens).end == "last"
    assert padding_of(torch.cat([tokens.flip(1), tokens], 1)) is None
    # Two values, and what may as well be a sequence of one.
    assert padding_of(torch.where(tokens[:1] == PAD, 1, tokens)) is None
    assert padding_of(torch.cat([tokens, tokens + 1])) is None
    assert padding_of(torch.zeros(3, WIDTH, dtype=torch.int64)) is None


class Tagger(nn.Module):
    def __init__(self, *paddings):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(9, 9, padding_idx=p) for p in paddings)

    def forward(self, tokens, mask=None):
        x = sum(embedding(tokens) for embedding in self.embeddings)
        return x if mask is None else x * mask[:, :, None]


def told_of(train):
    """Return what is told of padding: model, path, operation and share."""
    recording = record(train, LIFECYCLE)
    assert not recording.problems
    return [
        (variable.owner.rpartition(".")[2], variable.name, variable.type, value)
        for window in recording.windows
        for frame in window.frames
        for code, value in zip(frame.variables, frame.columns.get("value", ()), strict=False)
        if (variable := window.catalog.variables[int(code)]).kind == "padding"
    ]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_backward_tells_of_padding(reduction, is_masked):
    tokens, mask = padded([3, 10, 5])
    labels = tokens.masked_fill(mask == 0, IGNORED) if is_masked else tokens

    def train():
        loss = nn.functional.cross_entropy(
            Tagger(None)(tokens, mask).flatten(0, 1), labels.flatten(), reduction=reduction
        )
        (loss * mask.flatten()).sum().backward()

    expected = ("Tagger#0", "1", "nll_loss", 0.0 if is_masked else 1.0)
    assert told_of(train) == ([expected] if reduction == "mean" else [])


@pytest.mark.parametrize(
    ("paddings", "ignored", "shares"),
    [
        ([PAD], IGNORED, [1.0]),
        ([PAD], PAD, [0.0]),
        ([PAD, PAD, None], IGNORED, [1.0]),
        # Nothing is known where they say nothing, or not the same.
        ([None], IGNORED, []),
        ([PAD, 1], IGNORED, []),
    ],
)
def test_embeddings_tell_what_is_padding(paddings, ignored, shares):
    tokens, _ = padded([3, 10, 5])

    def train():
        logits = Tagger(*paddings)(tokens[:, :-1])
        nn.functional.cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:], ignore_index=ignored
        ).backward()

    assert told_of(train) == [("Tagger#0", "0", "nll_loss2d", share) for share in shares]


def test_targets_that_a_model_is_given_are_no_padding():
    tokens, _ = padded([10, 10, 10])
    tags, _ = padded([3, 6, 5])

    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.tagger = Tagger(PAD)

        def forward(self, tokens, tags):
            logits = self.tagger(tokens)
            return nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten())

    assert told_of(lambda: Trained()(tokens, tags).backward()) == []


class Reader(nn.Module):
    """Attention over words, with a mask of its own."""

    def __init__(self, hides):
        super().__init__()
        self.words = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.hides = hides

    def forward(self, tokens):
        hidden = self.layer(self.words(tokens), src_key_padding_mask=self.hides(tokens))
        return self.head(hidden.mean(1))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("hides", "told"),
    [
        (lambda tokens: tokens == PAD, "hidden"),
        (lambda tokens: tokens != PAD, "shown"),
        # What comes first is hidden besides.
        (lambda tokens: (tokens == PAD) | (torch.arange(WIDTH) == 0), "hidden"),
    ],
)
def test_a_backward_tells_whether_attention_hides_the_padding(left, hides, told):
    def train():
        model = Reader(hides)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            tokens, _ = padded([3, 4, WIDTH], left=left)
            nn.functional.cross_entropy(model(tokens), torch.tensor([0, 1, 2])).backward()
            optimizer.step()

    recording = record(train, LIFECYCLE)
    settings = {
        item.value
        for call in recording.of_role("backward")
        for item in call.inputs
        if item.path == "settings"
    }
    assert [f"attention.padding={told}" in text.split() for text in settings] == [True]
