"""What many ranks and long traces cost: the live comparison simulated, the memory measured.

The comparison is the one of a live run, of one rank, with peers that are simulated: the bytes that
a ring all-reduce makes this rank receive are reduced here, as it would have to; the network itself
is not there. A healthy step, and one in which another rank begins to differ.

    python benchmarks/bench_scale.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from traincheck_plugin.checker.ranks import Moment, State, StepBuilder
from traincheck_plugin.invariants.model import VAR_TYPES, VarTypeParam
from traincheck_plugin.relations.rank_consistency import RankConsistencyRelation
from traincheck_plugin.session.comparison import Comparer
from traincheck_plugin.vocabulary import Api, Context, Variable

VARIABLES = (1_000, 10_000, 100_000)
RANKS = (2, 16, 128, 1024, 4096)
STEP = Api(name="torch.optim.Adam.step", names=("torch.optim.Adam.step",), role="step")
ROOT = Path(__file__).parents[1]


class SimulatedPeers:
    """One rank of a ring; counts what it receives.

    Args:
        size: of the ring.

    Attributes:
        differs: whether the last rank has other values of some variables.
        num_bytes: received.
    """

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size
        self.ranks = list(range(size))
        self.num_bytes = 0
        self.differs = False

    def spread(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = values.view(np.int64)
        both = np.concatenate([own, ~own])
        chunk = -(-len(both) // self.size)
        for start in range(0, len(both), chunk):
            # Each chunk but its own comes once from the neighbour, to be reduced, and once done.
            part = both[start : start + chunk]
            np.minimum(part, part.copy(), out=part)
        self.num_bytes += 2 * both.nbytes * (self.size - 1) // self.size
        low, high = both.reshape(2, -1)
        high = ~high
        if self.differs and len(own) > 3:
            high[: len(own) // 10] += 1
        return low, high

    def gathered(self, values: np.ndarray) -> list[np.ndarray]:
        self.num_bytes += values.nbytes * (self.size - 1)
        own = values.view(np.int64)
        return [own] * (self.size - 1) + [own + 1]


def moment_of(builder: StepBuilder, num_variables: int) -> Moment:
    """Return what a rank has after a step: parameters, half of the variables, and their state."""
    half = num_variables // 2
    states = []
    for kind in ("parameter", "slot"):
        codes = np.array(
            [
                builder.catalog.variables.code(
                    Variable(kind=kind, name=f"layer.{n}", owner="model", type="t", shape=(2,))
                )
                for n in range(half)
            ],
            np.int32,
        )
        columns = {"data": np.arange(half, dtype=np.uint64) + np.uint64(half)}
        if kind == "parameter":
            columns["placement"] = np.ones(half, np.int8)
        states.append(State(phase="end", variables=codes, columns=columns))
    context = Context(world_size=2, stage="training")
    return Moment(context=context, api=STEP, source="", begin_ns=0, end_ns=1, states=tuple(states))


def compare(num_variables: int, num_ranks: int) -> list[tuple[float, int]]:
    """Return milliseconds and bytes of a comparison, labelling included: equal, and different."""
    builder = StepBuilder()
    moment = moment_of(builder, num_variables)
    param = VarTypeParam(var_type=VAR_TYPES["parameter"], attr_name="data", quantifier="every")
    peers = SimulatedPeers(num_ranks)
    comparer = Comparer(peers, builder)
    monitor = RankConsistencyRelation().monitor((param,))
    found = []
    for step in range(6):
        peers.num_bytes = 0
        peers.differs = step == 5
        begin = time.perf_counter()
        at = replace(moment, context=replace(moment.context, step=step))
        monitor.observe(comparer.compare(step, at))
        found.append(((time.perf_counter() - begin) * 1e3, peers.num_bytes))
    # The first one also gives the variables their keys.
    return [(statistics.median(ms for ms, _ in found[1:5]), found[4][1]), found[5]]


def compare_all(variables: tuple[int, ...]) -> None:
    print("One comparison, of one rank: CPU time of its thread, bytes received")
    print(f"{'variables':>10} {'ranks':>6} {'equal':>10} {'':>10} {'one differs':>12} {'':>10}")
    for num_variables in variables:
        for num_ranks in RANKS:
            (equal_ms, equal), (other_ms, other) = compare(num_variables, num_ranks)
            print(
                f"{num_variables:>10,} {num_ranks:>6,} {equal_ms:>7.2f} ms {equal / 1e3:>7,.0f} kB"
                f" {other_ms:>9.2f} ms {other / 1e3:>7,.0f} kB"
            )


def write_run(directory: Path, num_steps: int) -> int:
    """Write the trace of two ranks; return its bytes."""
    sys.path.insert(0, str(ROOT))
    from tests.builders import RunBuilder
    from traincheck_plugin.trace import Manifest, TraceWriter

    for rank in range(2):
        run = RunBuilder(rank=rank, world_size=2)
        parameters = run.parameters(*(f"layer{n}.weight" for n in range(50)))
        writer = TraceWriter(directory, Manifest(world_size=2, script="train.py"), rank=rank)
        for _ in range(num_steps):
            writer.write(run.training_step(parameters, num_functions=50))
        writer.close()
    return sum(path.stat().st_size for path in directory.rglob("*.arrow"))


def work(path: str) -> None:
    """Infer from a trace and check it; print the greatest resident memory of this process."""
    from traincheck_plugin.checker.check import check
    from traincheck_plugin.inference.infer import infer
    from traincheck_plugin.trace import open_run

    run = open_run(path)
    check(run, infer([run]).invariants)
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(float(status.partition("VmHWM:")[2].split()[0]) / 1e3)


def measure_memory(num_steps: int) -> None:
    print(f"\nInfer and check: two ranks, {num_steps:,} steps and ten times as many")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for factor in (1, 10):
            directory = Path(folder, str(factor))
            num_bytes = write_run(directory, num_steps * factor)
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, "--work", str(directory)],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks.append(float(done.stdout))
            print(
                f"{num_steps * factor:>10,} steps {num_bytes / 1e6:>8.1f} MB trace "
                f"{peaks[-1]:>7.0f} MB memory {time.perf_counter() - begin:>7.1f} s"
            )
    print(f"memory x {peaks[1] / peaks[0]:.2f} (budget 1.3)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer variables, shorter traces")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    compare_all(VARIABLES[:1] if arguments.quick else VARIABLES)
    measure_memory(50 if arguments.quick else 300)


if __name__ == "__main__":
    main()
