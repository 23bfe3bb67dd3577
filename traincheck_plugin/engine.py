"""Where work on traces is done: here, in some processes, or on the machines of a Ray cluster.

Inference and checking are made of pieces, one for each rank of each run and one for the ranks of a
run side by side. A piece reads its part of the trace itself, wherever it is done, and what it
returns is small. Results come in the order of the pieces: which engine did them cannot be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from traincheck_plugin.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


class Engine(Protocol):
    """Applies a function to pieces of work."""

    def map(self, function: Callable[[T], R], work: Sequence[T]) -> Iterator[R]:
        """Yield *function* of each piece of *work*, in order; all of them can be pickled."""


class LocalEngine:
    """Works in this process, or in a pool of them.

    Args:
        processes: how many; with one, pieces are done one after the other in this process.
    """

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes

    def map(self, function: Callable[[T], R], work: Sequence[T]) -> Iterator[R]:
        processes = min(self._processes, len(work))
        if processes <= 1:
            yield from map(function, work)
            return
        # Imported here: one process has no use for it, and it brings multiprocessing along.
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(function, work)


class RayEngine:
    """Works on a Ray cluster; traces have to be where all its machines can read them.

    Args:
        address: of the cluster, as `ray.init` takes it; None for one that is started here.
        processes: how many pieces are under way at once; None for as many as there are CPUs.

    Raises:
        ConfigError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, address: str | None = None, processes: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "expected the package ray for --engine ray, found none; "
                "install it with: pip install 'traincheck-plugin[ray]'"
            ) from error
        self._ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(
                    address=address,
                    num_cpus=processes if address is None else None,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"expected a Ray cluster at {address or 'this machine'}, got: {error}; "
                    "check --ray-address"
                ) from error
        self._limit = processes or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[T], R], work: Sequence[T]) -> Iterator[R]:
        remote, shared = self._ray.remote(_apply), self._ray.put(function)
        # Results wait in the memory of the cluster: no more of them than can be used soon.
        under_way: list[Any] = []
        for piece in work:
            under_way.append(remote.remote(shared, piece))
            if len(under_way) > 2 * self._limit:
                yield self._ray.get(under_way.pop(0))
        for reference in under_way:
            yield self._ray.get(reference)


def _apply(function: Callable[[T], R], piece: T) -> R:
    return function(piece)


def engine_of(name: str, *, processes: int | None, ray_address: str | None) -> Engine:
    """Return the engine that the options of a command name.

    Raises:
        ConfigError: it cannot work.
    """
    if name == "ray":
        return RayEngine(ray_address, processes)
    if ray_address is not None:
        raise ConfigError("expected --engine ray with --ray-address, got --engine local")
    return LocalEngine(processes or 1)
