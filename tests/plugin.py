"""The options of a test run, the broker that it starts, and the header that tells which it was."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from xdist.workermanage import WorkerController

from testbed.broker import KINDS, Broker, NoBrokerError, prepare, running
from testbed.cluster import running_cluster

_STACK = pytest.StashKey[contextlib.ExitStack]()
_BROKER = pytest.StashKey[Broker]()
_SAID = pytest.StashKey[list[str]]()
_HEADERS = pytest.StashKey[Path]()
_ERROR = "ERROR: "


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --broker and --cluster."""
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
    # Those that stop or kill a broker wait the longest. Where several processes share the tests,
    # these come first, so that none waits for another's last in the end.
    if hasattr(config, "workerinput"):
        chosen.sort(key=lambda item: "own_broker" not in getattr(item, "fixturenames", ()))
    items[:] = chosen


@pytest.hookimpl(optionalhook=True, tryfirst=True)
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
        if config.getoption("dist", "no") == "no":
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


def broker_of(config: pytest.Config) -> Broker:
    """Return the broker of the run."""
    return config.stash[_BROKER]
