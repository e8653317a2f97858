"""The options of a run, its broker, found clean by each test, and terminals to run scripts in."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pika.adapters.blocking_connection import BlockingChannel as Channel

from testbed.broker import Broker, NoBrokerError, OwnBroker
from testbed.choice import KINDS, prepare, prepare_cluster
from testbed.cluster import Cluster
from testbed.programs import Programs
from testbed.running import running
from testbed.terminal import REPOSITORY, Terminal, replaced

Run = Callable[..., Terminal]
Variant = Callable[..., str]

_BROKER = pytest.StashKey[Broker]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --broker and --cluster."""
    which = (
        "the tests' broker: the one that RABBITMQ_URL names, a container of RABBITMQ_IMAGE, or a"
        " private node of the installed RabbitMQ; auto takes the first that is named or can be had"
    )
    parser.addoption("--broker", choices=KINDS, default="auto", help=which)
    whole = "run the tests that are marked `cluster`, and no others, on three nodes in a cluster"
    parser.addoption("--cluster", action="store_true", help=whole)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the tests in five processes, since they mostly wait; in one if there is one broker."""
    kind = config.option.broker
    return 0 if kind == "url" or (kind == "auto" and os.environ.get("RABBITMQ_URL")) else 5


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Choose the broker, or cluster; the first test that needs it starts it."""
    config = session.config
    if not config.option.collectonly:
        choose = prepare_cluster if config.option.cluster else prepare
        try:
            config.stash[_BROKER] = choose(config.option.broker)
        except NoBrokerError as error:
            raise pytest.UsageError(str(error)) from None
        config.add_cleanup(config.stash[_BROKER].discard)


def pytest_report_header(config: pytest.Config) -> str:
    """Say which broker was chosen."""
    return f"broker: {config.stash[_BROKER].description}" if _BROKER in config.stash else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of a cluster to runs that have one, and all others to those that have not."""
    others = [item for item in items if ("cluster" in item.keywords) != config.option.cluster]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
    # Where several processes share the tests, those that wait the longest come first.
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: "own_broker" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def started_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The broker of the run. With xdist each process has its own."""
    config = request.config
    try:
        with running(config.stash[_BROKER]) as broker:
            yield broker
    except NoBrokerError as error:
        request.session.shouldstop = str(error)  # once, and not by each test
        raise


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which version each broker stated that was started."""
    reports = itertools.chain.from_iterable(terminalreporter.stats.values())
    noted = itertools.chain.from_iterable(getattr(one, "user_properties", ()) for one in reports)
    for started in sorted({value for name, value in noted if name == "broker"}):
        terminalreporter.write_line(started)


@pytest.fixture(scope="session")
def versions(started_broker: Broker) -> str:
    """What the run says at its end of the broker that it had."""
    return f"RabbitMQ {started_broker.version}, {started_broker.description}"


@pytest.fixture
def broker(
    started_broker: Broker, versions: str, record_property: Callable[[str, object], None]
) -> Broker:
    """The broker of the run, without anything that the scripts declare by name."""
    record_property("broker", versions)  # which xdist brings from the process that had it
    started_broker.clean()  # in the end the run itself does this
    return started_broker


@pytest.fixture
def managed_broker(broker: Broker) -> Broker:
    """The broker, for what only its management API tells."""
    if not broker.has_management:
        pytest.skip(f"no management API at {broker.description}; see RABBITMQ_MANAGEMENT_URL")
    return broker


@pytest.fixture
def own_broker(broker: Broker) -> Iterator[OwnBroker]:
    """The broker, for tests that stop or kill it; it runs again afterwards."""
    if not isinstance(broker, OwnBroker):
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
def channel(broker: Broker) -> Iterator[Channel]:
    """A channel of a connection of its own."""
    with broker.channel() as channel:
        yield channel


@pytest.fixture
def run(broker: Broker) -> Iterator[Run]:
    """Run a script in a terminal of its own: `run("part_1/sender.py")`.

    What it prints is shown with the test's own output when the test fails. What still runs at
    the test's end is killed.
    """
    with Programs(broker) as programs:
        yield programs.start
    programs.show()


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
