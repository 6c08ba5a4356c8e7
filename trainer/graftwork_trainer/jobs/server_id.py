"""What a server is called among those that share a journal's database."""

import uuid
from pathlib import Path

from graftwork_adapters.durable import write_file

_FILE = "server-id"


def server_id(folder: Path) -> str:
    """A UUID that is made once for a folder, whose adapters and jobs are this server's.

    Raises ValueError where the file is damaged, OSError.
    """
    path = folder / _FILE
    if not path.exists():
        write_file(path, str(uuid.uuid4()).encode())
    try:
        return str(uuid.UUID(path.read_text(encoding="utf-8").strip()))
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it") from None
