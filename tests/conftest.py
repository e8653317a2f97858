"""Fixtures: the broker of the run, found clean by each test, and terminals to run scripts in."""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pika.adapters.blocking_connection import BlockingChannel
from xdist.workermanage import WorkerController

from tests.broker import KINDS, Broker, NoBrokerError, prepare, running
from tests.cluster import Cluster, running_cluster
from tests.terminal import REPOSITORY, Terminal, replaced

_STACK = pytest.StashKey[contextlib.ExitStack]()
_BROKER = pytest.StashKey[Broker]()
_SAID = pytest.StashKey[list[str]]()
_HEADERS = pytest.StashKey[Path]()
_ERROR = "ERROR: "

Run = Callable[..., Terminal]
Variant = Callable[..., str]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --broker."""
    parser.addoption(
        "--broker",
        choices=KINDS,
        default="auto",
        help="which broker the tests run on: the one that RABBITMQ_URL names, a container of"
        " RABBITMQ_IMAGE, or a private node of the installed RabbitMQ; auto takes the first that"
        " can be had",
    )
    parser.addoption(
        "--cluster",
        action="store_true",
        help="run the tests that are marked `cluster`, and no others, on three nodes in a cluster",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of a cluster to runs that have one, and all others to those that have not."""
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        fits = (item.get_closest_marker("cluster") is not None) == config.option.cluster
        (chosen if fits else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the tests in three processes, since they mostly wait; in one if there is one broker."""
    kind = config.option.broker
    return 0 if kind == "url" or (kind == "auto" and os.environ.get("RABBITMQ_URL")) else 3


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the broker, or cluster, before the header is printed, which tells its version."""
    config = session.config
    if config.option.collectonly:
        return
    start = running_cluster if config.option.cluster else running
    stack, said = contextlib.ExitStack(), list[str]()
    config.stash[_STACK], config.stash[_SAID] = stack, said
    kind, process = config.option.broker, getattr(config, "workerinput", None)
    try:
        if config.getvalue("dist") == "no":
            config.stash[_BROKER] = stack.enter_context(start(kind, said.append))
        else:
            # Each of the processes starts a broker of its own, if there is one to be had.
            prepare(kind, said.append).discard()
            config.stash[_HEADERS] = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        *_, header = pytest_report_header(config) or [""]
    except NoBrokerError as error:
        if process is None:
            raise pytest.UsageError(str(error)) from None
        header = f"{_ERROR}{error}"
    if process is not None:
        Path(process["headers"], process["workerid"]).write_text(header)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which broker was chosen, and the version that it states."""
    said = config.stash.get(_SAID, [])
    if _BROKER not in config.stash:
        return said
    broker = config.stash[_BROKER]
    return [*said, f"broker: RabbitMQ {broker.version}, {broker.description}"]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a process of its own where to write its part of the header."""
    node.workerinput["headers"] = str(node.config.stash[_HEADERS])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: WorkerController) -> None:
    """Print a process's part of the header, or end the run if that has got no broker."""
    header = (node.config.stash[_HEADERS] / node.gateway.id).read_text()
    if header.startswith(_ERROR):
        pytest.exit(header, pytest.ExitCode.USAGE_ERROR)
    node.config.get_terminal_writer().line(header)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Discard the broker, however the run ends."""
    if _STACK in config.stash:
        config.stash[_STACK].close()


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The broker of the run, without anything that the scripts declare by name."""
    broker = request.config.stash[_BROKER]
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
