import subprocess
import sys

TRAIN_ONLY = ("matplotlib", "optuna", "tensorboard", "trl", "datasets")


def test_serving_needs_nothing_of_the_train_extra():
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({TRAIN_ONLY!r})); "
        "import graftwork_server.serve"
    )
    path = ":".join(sys.path)
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": path}, check=True)
