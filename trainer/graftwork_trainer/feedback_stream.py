"""What a data set is made of, over the public API."""

from collections.abc import Iterator
from typing import Any

from graftwork import Client

from graftwork_trainer.datasets.settings import DatasetSettings
