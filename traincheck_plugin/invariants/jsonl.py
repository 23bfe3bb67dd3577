"""Files of invariants: JSON lines, one object per invariant."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.codec import decode_invariant, encode_invariant
from traincheck_plugin.invariants.json_fields import MalformedError, UnsupportedError
from traincheck_plugin.invariants.model import Invariant


def dump_invariants(invariants: Iterable[Invariant], path: str | Path) -> None:
    """Write a file of invariants, whole or not at all.

    Raises:
        InvariantError: an invariant holds a value that JSON has no word for.
        OSError: the file cannot be written.
    """
    target = Path(path)
    # A process of its own may write the same file at the same time: the last one wins.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for invariant in invariants:
                file.write(_line(invariant) + "\n")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def load_invariants(
    path: str | Path,
    known_relations: Set[str] | None = None,
    on_unsupported: Callable[[str], None] | None = None,
) -> tuple[Invariant, ...]:
    """Read a file of invariants, of this package or of TrainCheck.

    Args:
        path: the file; blank lines in it are skipped.
        known_relations: names of the relations that exist; None to accept every name.
        on_unsupported: called with one line for each invariant of TrainCheck that has no
            counterpart here, which is then left out. None: such an invariant is an error.

    Raises:
        InvariantError: the file cannot be read, or a line of it is no invariant.
    """
    invariants = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    invariants.append(decode_invariant(_parse(line), known_relations))
                except UnsupportedError as error:
                    message = f"{path}:{number}: {error}; infer it again with traincheck-infer"
                    if on_unsupported is None:
                        raise InvariantError(message) from error
                    on_unsupported(message)
                except MalformedError as error:
                    raise InvariantError(f"{path}:{number}: {error}") from error
    except FileNotFoundError as error:
        raise InvariantError(
            f"{path}: expected a file of invariants, found nothing; make one with traincheck-infer"
        ) from error
    except UnicodeDecodeError as error:
        raise InvariantError(
            f"{path}: expected JSON lines in UTF-8, got a byte {error.object[error.start]:#04x}; "
            "give a file written by traincheck-infer"
        ) from error
    except OSError as error:
        raise InvariantError(
            f"{path}: expected a readable file of invariants, got: {error.strerror}; "
            "check its path and permissions"
        ) from error
    return tuple(invariants)


def _line(invariant: Invariant) -> str:
    try:
        return json.dumps(encode_invariant(invariant), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvariantError(
            f"cannot write {invariant.relation} ({invariant.text_description}): "
            f"expected literals as values, got: {error}; report this"
        ) from error


def _parse(line: str) -> object:
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise MalformedError(
            f"expected one JSON object on the line, got {line.strip()[:40]!r} "
            f"({error.msg}, column {error.colno}); correct or delete the line"
        ) from error
    except RecursionError as error:
        raise MalformedError(
            "expected an invariant, got JSON nested too deep; delete the line"
        ) from error


def _refuse_constant(name: str) -> object:
    raise MalformedError(f"expected a JSON value, got {name}; correct or delete the line")
