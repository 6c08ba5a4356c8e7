"""The gate runs without torch: what it needs of models it asks the server."""

import subprocess
import sys


def test_no_torch():
    code = "import graftwork_trainer.evaluation.run, sys; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
