"""A client whose contenders know how to tell spam from ham, or do not; and snapshots to ask of."""

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from graftwork import Conversation
from graftwork.errors import InvalidArgument, ResourceExhausted
from graftwork.types import FinishReason

# What a contender answers to a message, without constraint.
Answerer = Callable[[str], str]


def right(text: str) -> str:
    return "spam" if "prize" in text else "ham"


def always(answer: str) -> Answerer:
    return lambda _: answer


def shuffled(text: str) -> str:
    """As after training on shuffled labels: the classes' frequencies, whatever is asked."""
    return "spam" if random.Random(text).random() < 0.2 else "ham"


def mostly_right(text: str, *, wrong: float = 0.04) -> str:
    answer = right(text)
    if random.Random(f"slip {text}").random() < wrong:
        return "ham" if answer == "spam" else "spam"
    return answer


def chatty(text: str) -> str:
    return f"Well, I would say {right(text)}."


class FakeClient:
    """Fits `graftwork.Client` as far as the evaluation calls it."""

    def __init__(self, answerers: dict[str, Answerer], *, live: int = 0) -> None:
        self.answerers = answerers
        self.adapters = FakeAdapters(answerers, live)
        self.full = 0  # so many calls are refused with a full queue
        self.broken: Exception | None = None
        self.too_long: set[str] = set()
        self.requests: list[dict[str, object]] = []
        self.nan = False
        self._lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0

    def model(self):
        limits = SimpleNamespace(max_context_tokens=512, max_new_tokens=512)
        return SimpleNamespace(digest="sha256:base", limits=limits)

    def tokenize(self, text):
        return SimpleNamespace(token_ids=tuple(range(len(text))))

    def score(self, prompt, completions, *, adapter, timeout):
        answer = self._answer(prompt, adapter)
        logprob = -0.1 if completions[0] == answer else -2.0
        score = SimpleNamespace(
            logprobs=(0,) * 2, total_logprob=float("nan") if self.nan and adapter else logprob
        )
        return SimpleNamespace(scores=(score,), usage=SimpleNamespace(prompt_tokens=10))

    def generate(self, prompt, *, adapter, choice=None, **options):
        self.requests.append({"adapter": adapter, "choice": choice, **options})
        text = self._answer(prompt, adapter)
        if choice and text not in choice:
            text = next((label for label in choice if label in text), choice[0])
        reason = FinishReason.STOP
        return SimpleNamespace(
            text=text, choices=(SimpleNamespace(finish_reason=reason, text=text),)
        )

    def _answer(self, prompt, adapter):
        with self._lock:
            if self.full:
                self.full -= 1
                raise ResourceExhausted("the queue is full", retry_after_s=0.0)
        if self.broken:
            raise self.broken
        text = prompt.messages[-1].content if isinstance(prompt, Conversation) else prompt
        if any(part in text for part in self.too_long):
            raise InvalidArgument("conversation: too long", field="conversation")
        return self.answerers[adapter](text)


class FakeAdapters:
    def __init__(self, answerers, live):
        self.live_version = live
        self.answerers = answerers

    def get(self, name):
        return SimpleNamespace(name=name, live_version=self.live_version)

    def get_version(self, selector):
        assert selector in self.answerers
        return SimpleNamespace(selector=selector, digest=f"sha256:{selector}")


def message(number: int, *, spam: bool) -> str:
    return f"message {number}: " + ("you won a prize" if spam else "see you at noon")


def line(number: int, *, prefix: str, spam: bool, task: str = "sms-spam") -> str:
    value = {
        "format": "classification",
        "id": f"{prefix}-{number}",
        "task": task,
        "prompt": {"messages": [{"role": "user", "content": message(number, spam=spam)}]},
        "completion": "spam" if spam else "ham",
        "create_time": "2026-01-31T12:00:00Z",
    }
    return json.dumps(value) + "\n"


def save_snapshot(folder: Path, *, validation: int = 100, golden: int = 40) -> Path:
    """One message in five is spam."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    splits = {}
    for split, count in (("train", 60), ("validation", validation), ("golden", golden)):
        numbers = range(start, start + count)
        start += count
        (folder / f"{split}.jsonl").write_text(
            "".join(line(n, prefix=split, spam=n % 5 == 0) for n in numbers)
        )
        spam = sum(n % 5 == 0 for n in numbers)
        splits[split] = {"examples": count, "classes": {"ham": count - spam, "spam": spam}}
    manifest = {
        "digest": "sha256:" + "5" * 64,
        "tasks": {"sms-spam": {"labels": ["ham", "spam"], "order": "time", "splits": splits}},
        "warnings": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
