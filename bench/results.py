"""What `make bench` measured: its file, and the tables made of it."""

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from testbed.terminal import REPOSITORY

#: What the pages show.
FILE = REPOSITORY / "bench" / "results.json"


class Goal(NamedTuple):
    """How a variant should do beside another one.

    Attributes:
        variant: Whose value it is about.
        times: How many times the other's value it should be, at the least.
        of: The other variant.
        most: Whether it should be so at the most instead.
    """

    variant: str
    times: float
    of: str
    most: bool = False


@dataclass(frozen=True)
class Measure:
    """What is measured of several variants, of which the first is the plain one.

    Attributes:
        title: What was done.
        unit: Of its values, such as "messages a second".
        goals: How some variants should do.
        beside: The measure whose values stand beside these in a table, in place of the ratios.
    """

    title: str
    unit: str
    goals: tuple[Goal, ...] = ()
    beside: str = ""


MEASURES = {
    "connections": Measure("One message after the other", "messages a second"),
    "new_task": Measure(
        "One task, sent by a program of its own",
        "programs a second",
        (Goal("new_task.py", 0.9, of="new_task_2.py, no confirm"),),
    ),
    "sending": Measure(
        "Persistent tasks over one open channel",
        "tasks a second",
        (
            Goal("recipes/publisher.py, confirmed", 8, of="confirmed one by one"),
            Goal("recipes/publisher.py, confirmed", 0.8, of="confirmed, 100 in flight"),
        ),
    ),
    "persistence": Measure("Two producers, one durable queue", "messages a second"),
    "latency": Measure("What you wait for", "ms, median", beside="latency_99"),
    "latency_99": Measure("What you wait for", "ms, 99 of 100 take at most"),
    "working": Measure(
        "Tasks without any work",
        "tasks a second",
        (
            Goal("worker.py", 0.8, of="worker_4.py, plain"),
            Goal("worker.py", 1.1, of="pika's recipe, a thread a task"),
        ),
    ),
    "prefetch": Measure("Tasks of a millisecond", "tasks a second"),
    "workers": Measure(
        "Tasks that wait for 50 ms each",
        "tasks a second",
        tuple(Goal(f"{number} workers", 0.9 * number, of="1 worker") for number in (2, 4, 8)),
    ),
    "memory": Measure(
        "Memory of a consumer that waits",
        "megabytes",
        (
            Goal("worker.py", 1.08, of="worker_4.py", most=True),
            Goal("rpc_server.py", 1.08, of="rpc_server_1.py", most=True),
        ),
    ),
    "ready": Measure("From the start of a consumer until it waits", "seconds"),
    "fanout": Measure("A fanout exchange, two producers", "copies a second, all receivers"),
    "routing": Measure("Two producers, no binding matches", "messages a second"),
    "rpc_client": Measure(
        "One call at a time, rpc_server_1.py",
        "calls a second",
        (Goal("FibonacciRpcClient", 0.95, of="the plainest client"),),
    ),
    "rpc_server": Measure(
        "500 requests in flight, FibonacciRpcClient",
        "answers a second",
        (Goal("rpc_server.py", 0.8, of="rpc_server_1.py, plain"),),
    ),
    "in_flight": Measure(
        "FibonacciRpcClient and rpc_server.py",
        "answers a second",
        (Goal("500 in flight", 1.5, of="one call at a time"),),
    ),
    "queue_types": Measure("Persistent, confirmed one by one", "messages a second"),
    "queue_types_in_flight": Measure("Persistent, confirmed, 100 in flight", "messages a second"),
}


class Sample(NamedTuple):
    """One value of one variant; `measure` is a key of MEASURES."""

    measure: str
    variant: str
    value: float


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
        versions: Of RabbitMQ, Erlang, Python and pika, by name.
        cores: How many the machine has.
        samples: By measure and variant, the values; those at the same place were measured in turn.
    """

    versions: dict[str, str]
    cores: int
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path = FILE) -> Self:
        """Return what the file holds."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def __str__(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def digest(self) -> str:
        """Their SHA-256 in hexadecimal digits, which each picture of them carries."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    def write(self, file: Path) -> None:
        """Write them to the file."""
        file.write_text(str(self), encoding="utf-8")

    def add(self, sample: Sample) -> None:
        """Add one value."""
        variants = self.samples.setdefault(sample.measure, {})
        variants.setdefault(sample.variant, []).append(float(f"{sample.value:.4g}"))

    def value(self, measure: str, variant: str) -> Spread:
        """Return the variant's values, in the measure's unit."""
        return Spread.of(self.samples[measure][variant])

    def ratio(self, measure: str, variant: str, of: str = "") -> Spread:
        """Return how many times another variant's value it has, by those measured in turn.

        The other one is the measure's first, unless it is named.
        """
        variants = self.samples[measure]
        other = variants[of or next(iter(variants))]
        pairs = zip(variants[variant], other, strict=True)
        return Spread.of([ours / others for ours, others in pairs])

    @property
    def conditions(self) -> str:
        """What ran, such as "RabbitMQ 3.13.7, Erlang 26.2.5, Python 3.13.1, 2 cores"."""
        versions = [f"{name} {version}" for name, version in self.versions.items()]
        return ", ".join([*versions, f"{self.cores} cores"])

    def table(self, measure: str) -> str:
        """Return the measure as a table in Markdown."""
        what, variants = MEASURES[measure], self.samples[measure]
        plain, values = next(iter(variants.items()))
        column = f"times the first (least to most of {len(values)})"
        if what.beside:
            column = MEASURES[what.beside].unit
        lines = [f"| {what.title} | {what.unit} | {column} |", "|---|--:|--:|"]
        for variant in variants:
            if what.beside:
                last = shown(self.value(what.beside, variant).median)
            elif variant == plain:
                last = "1"
            else:
                median, least, most = map(shown, self.ratio(measure, variant))
                last = f"{median} ({least} to {most})"
            lines.append(f"| {variant} | {shown(self.value(measure, variant).median)} | {last} |")
        return "\n".join(lines)

    def goals(self, measure: str) -> list[str]:
        """Return one line for each goal of the measure: whether it was met."""
        lines = []
        for variant, times, other, most in MEASURES[measure].goals:
            if {variant, other} <= set(self.samples[measure]):
                reached = round(self.ratio(measure, variant, other).median, 2)  # as it is shown
                met = reached <= times if most else reached >= times
                lines.append(
                    f"Goal: {variant}, {times:g} of {other} at the {'most' if most else 'least'}:"
                    f" {reached:.2f}, {'met' if met else 'missed'}."
                )
        return lines


def shown(value: float) -> str:
    """Return the value for a reader, with three digits or more."""
    if value < 100:
        return f"{value:.{2 if value < 10 else 1}f}"
    return f"{float(f'{value:.3g}'):,.0f}"
