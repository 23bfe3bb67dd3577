"""Tests of traincheck_plugin.trace."""
