import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["extraction", "snapshot"])
def test_module_needs_no_torch(module):
    script = (
        f"import sys; sys.path[:] = {sys.path!r}; import graftwork_trainer.datasets.{module}; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
