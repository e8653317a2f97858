"""What `make bench` measured: its file, and the tables made of it."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from testbed.terminal import REPOSITORY

#: What the last full run wrote.
FILE = REPOSITORY / "bench" / "results.json"

#: Safety, and sharing the work, should cost no more than a tenth.
NEARLY = 0.9


@dataclass(frozen=True)
class Measure:
    """What is measured of several variants, of which the first is the plain one.

    Attributes:
        title: What was done.
        unit: Of its values, such as "messages a second".
        goals: For some variants, how many times the plain variant's value they should reach.
    """

    title: str
    unit: str
    goals: dict[str, float] = field(default_factory=dict)


MEASURES = {
    "connections": Measure("One message after the other", "messages a second"),
    "new_task": Measure(
        "One task sent by a program of its own",
        "programs a second",
        {"new_task.py, confirmed": NEARLY},
    ),
    "sending": Measure("Sending from one open channel", "messages a second"),
    "producers": Measure(
        "Persistent and confirmed one by one, several producers", "messages a second"
    ),
    "queue_types": Measure("Persistent and confirmed one by one", "messages a second"),
    "queue_types_in_flight": Measure(
        "Persistent and confirmed, 100 in flight", "messages a second"
    ),
    "working": Measure("Tasks without work", "tasks a second", {"worker.py, prefetch 1": NEARLY}),
    "workers": Measure(
        "Tasks that wait for 50 ms each",
        "tasks a second",
        {f"{number} workers": number * NEARLY for number in (2, 4, 8)},
    ),
    "dispatch": Measure("Four heavy and four light tasks in turn, two workers", "seconds for all"),
    "memory": Measure("Memory of a consumer that waits", "megabytes"),
    "ready": Measure("From the start of a consumer until it waits", "seconds"),
    "receivers": Measure("A fanout exchange with several receivers", "messages a second"),
    "routing": Measure("A direct exchange with many bindings", "messages a second"),
    "topics": Measure("A topic exchange with many bindings", "messages a second"),
    "rpc_client": Measure(
        "One call at a time, plain server",
        "calls a second",
        {"FibonacciRpcClient": 1.0},
    ),
    "rpc_server": Measure(
        "Requests in flight, FibonacciRpcClient", "answers a second", {"rpc_server.py": 1.0}
    ),
    "in_flight": Measure(
        "FibonacciRpcClient and rpc_server.py", "answers a second", {"500 in flight": 1.5}
    ),
    "servers": Measure("Requests that take 50 ms each, all in flight", "answers a second"),
}


class Sample(NamedTuple):
    """One value of one variant; `measure` is a key of MEASURES."""

    measure: str
    variant: str
    value: float


class Task(NamedTuple):
    """Which worker did a task, and from when to when, in seconds since the tasks were sent."""

    worker: int
    name: str
    began: float
    ended: float


class Spread(NamedTuple):
    """The median, the least and the most of several values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        """Return that of the values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Results:
    """What a run measured.

    Attributes:
        versions: Of the broker, of Python and of pika, by name.
        cores: How many the machine has.
        samples: By measure and variant, the values; those at the same place were measured in turn.
        timelines: By variant of "dispatch", the tasks of the last round.
    """

    versions: dict[str, str]
    cores: int
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    timelines: dict[str, list[Task]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path = FILE) -> Self:
        """Return what the file holds."""
        results = cls(**json.loads(file.read_text(encoding="utf-8")))
        for variant, tasks in results.timelines.items():
            results.timelines[variant] = [Task(*task) for task in tasks]
        return results

    def write(self, file: Path) -> None:
        """Write them to the file."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def add(self, sample: Sample) -> None:
        """Add one value."""
        variants = self.samples.setdefault(sample.measure, {})
        variants.setdefault(sample.variant, []).append(float(f"{sample.value:.4g}"))

    def values(self, measure: str) -> dict[str, Spread]:
        """Return each variant's values, in the measure's unit."""
        return {name: Spread.of(values) for name, values in self.samples[measure].items()}

    def ratios(self, measure: str) -> dict[str, Spread]:
        """Return how many times the plain variant's value each variant has, by those in turn."""
        variants = self.samples[measure]
        plain = next(iter(variants.values()))
        return {
            name: Spread.of([one / other for one, other in zip(values, plain, strict=True)])
            for name, values in variants.items()
        }

    @property
    def conditions(self) -> str:
        """One line that says what ran."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"Measured on one machine: {versions}, {self.cores} cores."

    def table(self, measure: str) -> str:
        """Return the measure as a table in Markdown."""
        what = MEASURES[measure]
        values, ratios = self.values(measure), self.ratios(measure)
        plain = next(iter(values))
        pairs = len(self.samples[measure][plain])
        return "\n".join(
            [
                f"| {what.title} | {what.unit} | times the first (least to most of {pairs}) |",
                "|---|--:|--:|",
                *(
                    f"| {name} | {shown(values[name].median)} |"
                    f" {'1' if name == plain else _spread(ratio)} |"
                    for name, ratio in ratios.items()
                ),
            ]
        )

    def goals(self, measure: str) -> list[str]:
        """Return one line for each goal of the measure: whether it was met."""
        ratios = self.ratios(measure)
        return [
            f"Goal for {variant}: {goal:g}, {'met' if reached >= goal else 'missed'}."
            for variant, goal in MEASURES[measure].goals.items()
            if variant in ratios
            # As it is shown.
            for reached in [round(ratios[variant].median, 2)]
        ]


def _spread(spread: Spread) -> str:
    median, least, most = map(shown, spread)
    return f"{median} ({least} to {most})"


def shown(value: float) -> str:
    """Return the value for a reader, with three digits or more."""
    if value < 100:
        return f"{value:.{2 if value < 10 else 1}f}"
    return f"{float(f'{value:.3g}'):,.0f}"
