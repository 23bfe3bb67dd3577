"""Tests of traincheck-plugin; shared builders live in `tests.builders`."""
