"""Registers versions of growing content until it is killed; prints each once it is registered."""

import sys
from pathlib import Path

from tests.adapters.registry_helpers import OpenRegistry


def main(folder: Path) -> None:
    opened = OpenRegistry(folder)
    start = len(opened.registry.list_versions(page_size=1000).items) + 1
    print("ready", flush=True)
    for number in range(start, start + 1000):
        version = opened.register("a", f"content {number}\n".encode() * 1000, make_live=True)
        print(version.version, version.digest, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
