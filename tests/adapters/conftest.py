from tests.e2e.conftest import float_model, model_path

__all__ = ["float_model", "model_path"]
