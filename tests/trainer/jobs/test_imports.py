"""The queue, its supervisor and its service run in the server, and know no tensors."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "trl")


@pytest.mark.parametrize(
    "module",
    [
        "graftwork_trainer.jobs.canaries",
        "graftwork_trainer.jobs.launcher",
        "graftwork_trainer.jobs.policies",
        "graftwork_trainer.jobs.service",
        "graftwork_trainer.wiring",
        "graftwork_trainer.phases",  # a job that ends before it trains does without
    ],
)
def test_module_needs_no_torch(module: str):
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}; import {module}; "
        f"sys.exit(', '.join(m for m in {HEAVY!r} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_worker_steps_back_before_it_imports_anything_large():
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}; import graftwork_trainer.worker; "
        "found = [m for m in ('grpc', 'google.protobuf', 'numpy') if m in sys.modules]; "
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()
