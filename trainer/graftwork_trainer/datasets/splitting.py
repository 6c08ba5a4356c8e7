"""Splits examples into golden set, validation and training, so that nothing leaks between them.

Examples that share an episode, a request, a (similar) prompt or an author are one group, and a
group is never split. An author of more than a tenth of all examples makes no group: it would be
all there is. What is in a group with a golden example is left out.

Validation takes the latest groups of each task. Where the middle 80% of a task's examples lie
within an hour, as after an import, time says nothing, and the order is random (by hash).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from graftwork_trainer.datasets.cleaning import class_of
from graftwork_trainer.datasets.examples import Example
from graftwork_trainer.datasets.order import shuffled_key
from graftwork_trainer.datasets.settings import DatasetSettings

_MAX_AUTHOR_SHARE = 0.1
_BULK = timedelta(hours=1)

_Stratum: TypeAlias = tuple[str, str]  # task and class


@dataclass(slots=True)
class Splits:
    """Indices into the examples."""

    golden: list[int] = field(default_factory=list)  # newly chosen; those held are not named
    validation: list[int] = field(default_factory=list)
    train: list[int] = field(default_factory=list)
    num_groups: int = 0  # that golden examples do not hold
    order_of_task: dict[str, str] = field(default_factory=dict)  # "time" or "hash"


@dataclass(frozen=True, slots=True)
class _Group:
    members: tuple[int, ...]
    strata: Counter[_Stratum]
    name: str  # the least id of its members

    @property
    def size(self) -> int:
        return len(self.members)

    def has(self, task: str) -> bool:
        return any(of == task for of, _ in self.strata)


def split(
    examples: Sequence[Example],
    similar: Iterable[tuple[int, int]],
    settings: DatasetSettings,
    dropped: Counter[str],
    *,
    held: int,
    frozen_tasks: frozenset[str],
) -> Splits:
    """Splits all but the first `held` examples, which are golden ones; a golden set is chosen for
    the tasks that are not in `frozen_tasks`. Counts in `dropped` what golden examples hold back
    (`held_by_golden`). Either of validation and train is empty where there are too few groups."""
    splits = Splits()
    groups = []
    for members in _components(examples, similar):
        free = tuple(member for member in members if member >= held)
        if len(free) < len(members):
            dropped["held_by_golden"] += len(free)
        else:
            groups.append(_group(examples, free))
    groups.sort(key=lambda group: shuffled_key("golden", group.name))
    totals = _totals(groups)
    if settings.golden_share:
        for task in sorted({task for task, _ in totals} - frozen_tasks):
            wanted = _golden_quota(totals, task, settings.golden_share)
            have = Counter(_strata(examples, splits.golden))
            groups, taken = _take(groups, groups, task, wanted, have)
            new = [member for member in taken if examples[member].task not in frozen_tasks]
            dropped["held_by_golden"] += len(taken) - len(new)
            splits.golden += new

    # What follows is the same whether the golden set was chosen now or long ago.
    splits.num_groups = len(groups)
    totals = _totals(groups)
    for task in sorted({task for task, _ in totals}):
        splits.order_of_task[task], ordered = _latest_first(examples, groups, task)
        wanted = Counter(
            {
                stratum: min(max(1, round(settings.validation_share * total)), total - 1)
                for stratum, total in totals.items()
                if stratum[0] == task
            }
        )
        have = Counter(_strata(examples, splits.validation))
        groups, taken = _take(groups, ordered, task, wanted, have)
        splits.validation += taken
    splits.train = sorted(member for group in groups for member in group.members)
    return splits


def _components(examples: Sequence[Example], similar: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components of what may not be torn apart."""
    parent = list(range(len(examples)))

    def root(of: int) -> int:
        while parent[of] != of:
            parent[of] = parent[parent[of]]
            of = parent[of]
        return of

    def join(one: int, other: int) -> None:
        one, other = root(one), root(other)
        parent[max(one, other)] = min(one, other)

    by_author = Counter(example.author for example in examples)
    most = _MAX_AUTHOR_SHARE * len(examples)
    first_of: dict[tuple[str, str], int] = {}
    for number, example in enumerate(examples):
        author = example.author if by_author[example.author] <= most else ""
        for kind, value in (
            ("episode", example.episode_id),
            ("request", example.group_id),
            ("author", author),
        ):
            if value:
                join(first_of.setdefault((kind, value), number), number)
    for one, other in similar:
        join(one, other)
    components = defaultdict(list)
    for number in range(len(examples)):
        components[root(number)].append(number)
    return list(components.values())


def _group(examples: Sequence[Example], members: tuple[int, ...]) -> _Group:
    return _Group(
        members,
        Counter(_strata(examples, members)),
        min(examples[member].id for member in members),
    )


def _strata(examples: Sequence[Example], members: Iterable[int]) -> Iterable[_Stratum]:
    return ((examples[member].task, class_of(examples[member])) for member in members)


def _totals(groups: Iterable[_Group]) -> Counter[_Stratum]:
    return sum((group.strata for group in groups), Counter[_Stratum]())


def _golden_quota(totals: Counter[_Stratum], task: str, share: float) -> Counter[_Stratum]:
    """The share of each class; at least one example of the task."""
    own = {stratum: total for stratum, total in totals.items() if stratum[0] == task}
    wanted = Counter({stratum: round(share * total) for stratum, total in own.items()})
    if not wanted.total():
        wanted[max(own, key=lambda stratum: (own[stratum], stratum))] = 1
    return wanted


def _take(
    groups: list[_Group],
    ordered: list[_Group],
    task: str,
    wanted: Counter[_Stratum],
    have: Counter[_Stratum],
) -> tuple[list[_Group], list[int]]:
    """Takes groups of a task in order, while a class of theirs is wanted beyond what there is; a
    group far larger than all that is wanted stays, and so does the last group of the task.

    Returns the groups that are left, in their own order, and the members of those taken.
    """
    have = Counter(have)
    taken: list[_Group] = []
    own = [group for group in ordered if group.has(task)]
    for group in own:
        if len(taken) == len(own) - 1:
            break
        small = group.size <= 2 * wanted.total()
        if small and any(have[stratum] < wanted[stratum] for stratum in group.strata):
            taken.append(group)
            have += group.strata
    if len(own) > 1 and not any(have[stratum] for stratum in wanted):
        taken = [min(own, key=lambda group: group.size)]
    names = {group.name for group in taken}
    left = [group for group in groups if group.name not in names]
    return left, [member for group in taken for member in group.members]


def _latest_first(
    examples: Sequence[Example], groups: list[_Group], task: str
) -> tuple[str, list[_Group]]:
    """The name of the order, and the groups in it."""
    times: dict[str, datetime] = {}  # the latest, by name of group
    all_times = []
    for group in groups:
        own = [examples[m].create_time for m in group.members if examples[m].task == task]
        all_times += own
        if own:
            times[group.name] = max(own)
    all_times.sort()
    edge = len(all_times) // 10
    shuffled = sorted(groups, key=lambda group: shuffled_key("validation", group.name))
    if not all_times or all_times[-1 - edge] - all_times[edge] < _BULK:
        return "hash", shuffled
    in_time = [group for group in shuffled if group.name in times]
    return "time", sorted(in_time, key=lambda group: times[group.name], reverse=True)
