"""The version: one place, read by the build, the commands and the traces."""

__version__ = "0.1.0"
