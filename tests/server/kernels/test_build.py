import os
import subprocess
import sys
from pathlib import Path

import graftwork_server
import pytest
import torch
from graftwork_server.kernels.build import kernels_loaded, load_kernels

SERVER = Path(graftwork_server.__file__).parents[1]

# Loads, then multiplies: without the kernels the reference must serve.
SCRIPT = """
import logging, torch
from graftwork_server.kernels.build import load_kernels
from graftwork_server.quantization.int8 import Int8Linear
logging.basicConfig(level=logging.INFO)
print("loaded", load_kernels())
print("shape", tuple(Int8Linear.from_linear(torch.nn.Linear(64, 40))(torch.randn(3, 64)).shape))
"""


def run_script(cache, **environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": str(SERVER), "GRAFTWORK_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("environment", "missing"),
    [({"PATH": ""}, "build-essential"), ({"PATH": os.defpath, "CXX": "false"}, "C++20")],
)
def test_without_a_working_compiler_one_warning_says_what_is_missing(
    tmp_path, environment, missing
):
    result = run_script(tmp_path, **environment)
    assert result.stdout == "loaded False\nshape (3, 40)\n"
    assert result.stderr.count("WARNING:graftwork_server") == 1
    assert missing in result.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_a_build_is_announced_kept_and_complete(tmp_path):
    compiler = tmp_path / "compiler"
    # Writes something at the path after -o, as a compiler would, and leaves the rest.
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho broken > "$2"\n')
    compiler.chmod(0o700)
    cache = tmp_path / "cache"
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run_script(cache, PATH=os.defpath, CXX=str(compiler))
    assert "compiling CPU kernels, about" in failure.value.stderr
    assert "OSError" in failure.value.stderr
    (library,) = (path for path in cache.rglob("*") if path.is_file())
    assert library.name == "graftwork_kernels.so"


def test_loading_again_changes_nothing():
    op = torch.ops.graftwork.paged_attention
    assert load_kernels()
    assert kernels_loaded()
    assert torch.ops.graftwork.paged_attention is op
