"""Where traces live: a local directory, or any URI that pyarrow.fs opens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from traincheck_plugin.errors import TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file or directory in some file system.

    Attributes:
        filesystem: where.
        path: in that file system.
        name: what a reader is shown; the path or URI as it was given.
    """

    filesystem: Any
    path: str
    name: str

    @classmethod
    def of(cls, path: str | Path) -> Place:
        """Return the place of a local path or a URI such as ``s3://bucket/runs/1``.

        Raises:
            TraceError: no file system is known for the URI.
        """
        name = str(path)
        if "://" not in name:
            return cls(filesystem=fs.LocalFileSystem(), path=os.path.abspath(name), name=name)
        try:
            filesystem, inner = fs.FileSystem.from_uri(name)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise TraceError(
                f"{name} cannot be opened: expected a local path or a URI that pyarrow.fs knows "
                f"(file, s3, gs, abfs, hdfs), got {one_line(error)}"
            ) from error
        return cls(filesystem=filesystem, path=inner, name=name)

    def __truediv__(self, child: str) -> Place:
        return Place(
            filesystem=self.filesystem,
            path=f"{self.path.rstrip('/')}/{child}",
            name=f"{self.name.rstrip('/')}/{child}",
        )

    @property
    def parent(self) -> Place:
        return Place(
            filesystem=self.filesystem,
            path=os.path.dirname(self.path.rstrip("/")),
            name=os.path.dirname(self.name.rstrip("/")) or ".",
        )

    @property
    def base(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def info(self) -> Any:
        return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        return bool(self.info().is_file)

    def is_directory(self) -> bool:
        return bool(self.info().type == fs.FileType.Directory)

    def children(self) -> list[str]:
        """Return the sorted names in a directory; none where there is no directory."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def make_directory(self) -> None:
        self.filesystem.create_dir(self.path, recursive=True)

    def read_text(self) -> str:
        with self.filesystem.open_input_stream(self.path) as stream:
            return str(stream.read().decode("utf-8", errors="replace"))

    def write_text(self, text: str) -> None:
        """Write a small file so that a reader sees all of it or none of it."""
        if not self.is_local:  # an object appears when it is complete
            with self.filesystem.open_output_stream(self.path, compression=None) as stream:
                stream.write(text.encode())
            return
        temporary = f"{self.path}.{os.getpid()}.tmp"
        with self.filesystem.open_output_stream(temporary, compression=None) as stream:
            stream.write(text.encode())
        os.replace(temporary, self.path)


def one_line(error: BaseException) -> str:
    """Return the text of *error* on one line."""
    return " ".join(str(error).split()) or type(error).__name__
