"""Found first by each Python that a launcher starts under ``traincheck-collect -- LAUNCHER``.

A process that is to be recorded becomes one of ``traincheck-collect``; in all others the module
of this name that the environment has anyway takes the place of this one.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_HERE = str(Path(__file__).parent)


def _give_way() -> None:
    sys.path[:] = [path for path in sys.path if path != _HERE]
    spec = PathFinder.find_spec(__name__)
    if spec is not None and spec.loader is not None:
        sys.modules[__name__] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


try:
    from traincheck_plugin.cli.launched import take_over
except ImportError:
    # Another Python, without this package: it runs as it would without the command.
    pass
else:
    take_over()
_give_way()
