"""A script cannot tell from python's behaviour that it is run by this package."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from traincheck_plugin.cli.script import read_script
from traincheck_plugin.errors import ScriptError

RUN = (
    "import sys; from traincheck_plugin.cli.script import run_script; "
    "sys.exit(run_script(sys.argv[1], sys.argv[2:]).exit_code)"
)
ROOT = Path(__file__).parents[2]


def finish(command: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )


SCRIPTS = {
    "arguments and paths": """
        import sys
        print(sys.argv, sys.path[0], __file__, __name__, sorted(globals()))
    """,
    "a neighbour is imported": "import neighbour; print(neighbour.VALUE)",
    "main guard": """
        def main(): print("guarded")
        if __name__ == "__main__": main()
    """,
    "the module is registered": """
        import sys
        class Thing: pass
        assert sys.modules["__main__"].Thing is Thing
        assert vars(sys.modules[Thing.__module__]) is globals()
    """,
    "pickled by name": """
        import pickle
        class Thing: pass
        print(type(pickle.loads(pickle.dumps(Thing()))), pickle.dumps(Thing))
    """,
    "dataclass with postponed annotations": """
        from __future__ import annotations
        from dataclasses import dataclass, fields
        from typing import ClassVar
        @dataclass
        class Point:
            size: ClassVar[int] = 2
            x: int = 0
        print([field.name for field in fields(Point)])
    """,
    "annotations are not postponed for it": """
        def f(x: int): pass
        print(f.__annotations__)
    """,
    "its own source": """
        import inspect
        def f(): return 1
        print(inspect.getsource(f))
    """,
    "exit handlers": """
        import atexit
        VALUE = "still there"
        atexit.register(lambda: print(VALUE))
        print("end")
    """,
    "spawned workers": """
        import multiprocessing as mp
        def double(x): return 2 * x
        if __name__ == "__main__":
            with mp.get_context("spawn").Pool(1) as pool:
                print(pool.map(double, [1, 2]))
    """,
    "forked workers": """
        import multiprocessing as mp
        def double(x): return 2 * x
        if __name__ == "__main__":
            with mp.get_context("fork").Pool(2) as pool:
                print(pool.map(double, [1, 2]))
    """,
    "idle executor threads": """
        from concurrent.futures import ThreadPoolExecutor
        print(ThreadPoolExecutor(1).submit(abs, -3).result())
    """,
    "exit with nothing": "import sys; sys.exit()",
    "exit with a number": "import sys; sys.exit(3)",
    "exit with true": "import sys; sys.exit(True)",
    "exit below zero": "import sys; sys.exit(-1)",
    "exit with text": "import sys; print('out'); sys.exit('that is all')",
    "exit with an object": "import sys; sys.exit([1, 2])",
    "raised exit": "raise SystemExit(4)",
    "an exception": """
        def f(x):
            return 1 / x

        f(0)
    """,
    "a chain of exceptions": """
        def f():
            try:
                {}["missing"]
            except KeyError as error:
                try:
                    raise ValueError("second") from error
                except ValueError:
                    raise RuntimeError("third\\nwith two lines")
        f()
    """,
    "a group of exceptions": """
        def f():
            errors = []
            for x in (1, 2):
                try:
                    raise ValueError(x)
                except ValueError as error:
                    errors.append(error)
            raise ExceptionGroup("several", errors)
        f()
    """,
    "an exception with a note": """
        error = ValueError("here")
        error.add_note("and a note")
        raise error
    """,
    "a failing import": "import there_is_no_such_module",
    "an import that raises": "import broken",
    "a syntax error": "x = (\n",
    "a syntax error in a neighbour": "import unreadable",
    "a hook": """
        import sys
        sys.excepthook = lambda kind, error, trace: print(kind, error, trace.tb_lineno)
        raise ValueError(1)
    """,
    "a hook that fails": """
        import sys
        def hook(kind, error, trace):
            raise KeyError("hook")
        sys.excepthook = hook
        raise ValueError(1)
    """,
    "a hook that exits": """
        import sys
        sys.excepthook = lambda *_: sys.exit(7)
        raise ValueError(1)
    """,
    "what failed last": """
        import atexit, sys
        atexit.register(lambda: print(sys.last_type, sys.last_value, sys.last_traceback.tb_lineno))
        raise ValueError(1)
    """,
    "an encoding": "# coding: latin-1\nprint(ascii('\\u00e9'))",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 5\n")
    (tmp_path / "broken.py").write_text("def f():\n    raise OSError('broken')\n\nf()\n")
    (tmp_path / "unreadable.py").write_text("def f(:\n")
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_it_runs_as_under_python(folder, script):
    (folder / "script.py").write_text(textwrap.dedent(script))

    arguments = ["script.py", "--lr", "0.1"]
    expected = finish([sys.executable, *arguments], folder)
    got = finish([sys.executable, "-c", RUN, *arguments], folder)

    assert got.stderr.decode() == expected.stderr.decode()
    assert got.stdout.decode() == expected.stdout.decode()
    assert got.returncode == expected.returncode


def test_an_encoded_script_is_decoded(folder):
    (folder / "script.py").write_bytes(b"# coding: latin-1\nprint(ascii('\xe9'))\n")
    assert finish([sys.executable, "-c", RUN, "script.py"], folder).stdout == b"'\\xe9'\n"


@pytest.mark.parametrize("path", ["./script.py", "inner/../script.py", "inner/link.py"])
def test_paths_are_those_of_python(folder, path):
    (folder / "inner").mkdir()
    (folder / "inner" / "link.py").symlink_to(folder / "script.py")
    (folder / "script.py").write_text(
        "import sys, neighbour\nprint(__file__, sys.argv, sys.path[0])\nraise ValueError\n"
    )

    expected = finish([sys.executable, path], folder)
    got = finish([sys.executable, "-c", RUN, path], folder)

    assert (got.stdout, got.stderr) == (expected.stdout, expected.stderr)


def test_an_interrupt_is_shown_as_by_python(folder):
    (folder / "script.py").write_text(
        "import os, signal\n"
        "def train():\n"
        f"    os.kill(os.getpid(), {signal.SIGINT.value})\n"
        "    while True: pass\n"
        "train()\n"
    )
    expected = finish([sys.executable, "script.py"], folder)
    got = finish([sys.executable, "-c", RUN, "script.py"], folder)

    # The loop may be stopped at either of its two places.
    shown = [line for line in got.stderr.decode().splitlines() if "^" not in line]
    assert shown[:3] == expected.stderr.decode().splitlines()[:3]
    assert shown[-1] == "KeyboardInterrupt"
    assert got.returncode == 130


def test_a_script_that_is_not_there():
    with pytest.raises(ScriptError) as caught:
        read_script("no/such.py")
    assert str(caught.value) == (
        "expected a Python script, but no/such.py does not exist; check the path"
    )


def test_a_directory(tmp_path):
    with pytest.raises(ScriptError, match="is a directory; name the file to run"):
        read_script(str(tmp_path))


def test_a_script_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ScriptError, match=r"gives: Permission denied; check its permissions"):
        read_script("script.py")
