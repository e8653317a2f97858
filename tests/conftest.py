"""Fixtures: the broker of the run, found clean by each test, and terminals to run scripts in."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from testbed.broker import Broker
from testbed.cluster import Cluster
from testbed.terminal import REPOSITORY, Terminal, replaced
from tests.plugin import broker_of

Run = Callable[..., Terminal]
Variant = Callable[..., str]


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The broker of the run, without anything that the scripts declare by name."""
    broker = broker_of(request.config)
    broker.clean()
    yield broker
    broker.clean()


@pytest.fixture
def managed_broker(broker: Broker) -> Broker:
    """The broker, for what only its management API tells."""
    if not broker.has_management:
        pytest.skip(f"no management API at {broker.description}; see RABBITMQ_MANAGEMENT_URL")
    return broker


@pytest.fixture
def own_broker(broker: Broker) -> Iterator[Broker]:
    """The broker, for tests that stop or kill it; it runs again afterwards."""
    if not broker.owned:
        pytest.skip(f"would stop {broker.description}")
    yield broker
    broker.start()


@pytest.fixture
def cluster(broker: Broker) -> Iterator[Cluster]:
    """The cluster of the run; all its nodes run again afterwards."""
    assert isinstance(broker, Cluster)
    yield broker
    broker.start()


@pytest.fixture
def channel(broker: Broker) -> Iterator[BlockingChannel]:
    """A channel of a connection of its own."""
    with broker.channel() as channel:
        yield channel


@pytest.fixture
def run(broker: Broker) -> Iterator[Run]:
    """Run a script in a terminal of its own: `run("part_1/sender.py")`.

    What it prints is shown with the test's own output when the test fails. What still runs at
    the test's end is killed.
    """
    terminals: list[Terminal] = []
    numbers = itertools.count(1)
    began = time.monotonic()

    shown: list[str] = []

    def echo(terminal: Terminal, line: str) -> None:
        shown.append(f"{time.monotonic() - began:6.2f} s  terminal {terminal.name}  {line}")

    def run(*command: str, url: str | None = None) -> Terminal:
        terminals.append(Terminal(str(next(numbers)), url or broker.url, echo, *command))
        return terminals[-1]

    yield run
    for terminal in terminals:
        terminal.process.kill()
        terminal.wait()
    print("\n".join(shown))


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    """Copy a script with some of its text replaced, to show what it does for its reason.

    `variant("part_2/worker.py", ("prefetch_count=1", "prefetch_count=0"))` returns the copy's path.
    """
    numbers = itertools.count(1)

    def variant(script: str, *replacements: tuple[str, str]) -> str:
        text = replaced((REPOSITORY / script).read_text(encoding="utf-8"), *replacements)
        copy = tmp_path / f"variant_{next(numbers)}_{Path(script).name}"
        copy.write_text(text, encoding="utf-8")
        return str(copy)

    return variant
