"""Traces in an object store: written, read, learned from and checked by their URI."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
from moto.server import ThreadedMotoServer
import boto3, sys

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(
    Bucket="bucket"
)
place = f"s3://bucket/run?scheme=http&endpoint_override={host}:{port}&region=us-east-1"

from tests.builders import training_run
from traincheck_plugin.checker.check import check
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.trace import Manifest, TraceWriter, open_run

writers = [
    TraceWriter(place, Manifest.here(script="train.py", world_size=2), rank=r) for r in range(2)
]
for rank, writer in enumerate(writers):
    for window in training_run(20, rank=rank, world_size=2):
        writer.write(window)
    writer.close()
run = open_run(place)
assert [trace.rank for trace in run.ranks] == [0, 1]
assert [len(list(trace.windows())) for trace in run.ranks] == [20, 20]
invariants = infer([run]).invariants
result = check(run, invariants)
assert any(i.relation == "RankConsistencyRelation" for i in invariants), invariants
assert result.diagnoses == () and result.problems == (), result
assert result.num_steps == 20
server.stop()
print("done")
"""


@pytest.mark.slow
def test_a_trace_in_an_object_store_is_like_any_other(tmp_path):
    # In a process of its own: the server and its client warn of things that are not ours.
    pytest.importorskip("moto.server")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
