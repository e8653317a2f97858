"""FibonacciRpcClient, as another program uses it: each call ends right, or in a clear error."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from part_6.rpc_client import FibonacciRpcClient, RpcError
from testbed.broker import Broker
from testbed.terminal import REPOSITORY
from testbed.waiting import wait_until
from tests.conftest import Run
from tests.network import Network
from tests.scripts import SERVER

pytestmark = pytest.mark.timeout(180)  # seconds, for a busy machine

QUEUE = "rpc_queue"


def client_at(url: str) -> FibonacciRpcClient:
    """Return a client of the server at an address."""
    return FibonacciRpcClient(pika.URLParameters(url))


def take_request(channel: BlockingChannel) -> BasicProperties:
    """Take a request out of the queue as a server does, and return its properties."""

    def get() -> BasicProperties | None:
        return channel.basic_get(queue=QUEUE, auto_ack=True)[1]

    properties = wait_until(get, "a request")
    assert properties
    return properties


def answer(channel: BlockingChannel, request: BasicProperties, body: bytes, kind: str = "") -> None:
    """Answer a request, as a server does."""
    channel.basic_publish(
        exchange="",
        routing_key=str(request.reply_to),
        body=body,
        properties=BasicProperties(correlation_id=request.correlation_id, type=kind or None),
    )


@pytest.fixture
def queue(channel: BlockingChannel) -> str:
    """The queue of requests, which no server consumes."""
    channel.queue_declare(queue=QUEUE, durable=True)
    return QUEUE


@pytest.mark.usefixtures("queue")
def test_a_foreign_answer_is_an_error_of_the_call(broker: Broker, channel: BlockingChannel) -> None:
    with client_at(broker.url) as client:
        for body in (b"", b"abc", b"9" * 5000, b"-1", b"1_0", b" 1", b"\xff", "²".encode(), b"1.0"):
            request = client.request(10)
            answer(channel, take_request(channel), body)
            with pytest.raises(RpcError, match="the answer is no number"):
                client.result(request)
            assert client.requests == {}
        request = client.request(10)
        answer(channel, take_request(channel), b"55")
        assert client.result(request) == 55


@pytest.mark.usefixtures("queue")
def test_an_error_of_the_server_is_one_of_the_call(
    broker: Broker, channel: BlockingChannel
) -> None:
    with client_at(broker.url) as client:
        request = client.request(10)
        answer(channel, take_request(channel), b"not today: \xff", "error")
        with pytest.raises(RpcError, match="not today: \ufffd"):
            client.result(request)
        assert client.requests == {}


@pytest.mark.parametrize("timeout", [-0.5, 0, float("nan"), float("-inf")])
def test_a_timeout_that_leaves_no_time(run: Run, broker: Broker, timeout: float) -> None:
    run(SERVER).expect_ready()
    with client_at(broker.url) as client:
        with pytest.raises(TimeoutError):
            client.call(10, timeout=timeout)
        assert client.requests == {}
        assert client.call(10) == 55


FORKED = """
import os, sys
sys.path.insert(0, {repository!r})
import pika
from part_6.rpc_client import FibonacciRpcClient, RpcError
client = FibonacciRpcClient(pika.URLParameters({url!r}))
child = os.fork()
numbers = range(11, 31) if child else range(10)
for n in numbers:
    try:
        print("parent" if child else "child", n, client.call(n, timeout=5), flush=True)
    except RpcError as error:
        print("parent" if child else "child", n, error, flush=True)
if child:
    os.waitpid(child, 0)
    print("parent", 30, client.call(30), flush=True)
client.__exit__()
"""


def test_a_client_of_two_processes_gives_no_wrong_number(
    run: Run, broker: Broker, tmp_path: Path
) -> None:
    program = tmp_path / "forked.py"
    program.write_text(FORKED.format(repository=str(REPOSITORY), url=broker.url))
    run(SERVER).expect_ready()
    forked = run(str(program))
    assert forked.wait(60) == 0
    fib = [0, 1]
    while len(fib) <= 30:
        fib.append(fib[-1] + fib[-2])
    parent = [f"parent {n} {fib[n]}" for n in (*range(11, 31), 30)]
    child = [f"child {n} this client was made by another process" for n in range(10)]
    assert sorted(forked.out) == sorted(parent + child)


def test_ids_are_unique_among_clients(broker: Broker, channel: BlockingChannel, queue: str) -> None:
    with client_at(broker.url) as one, client_at(broker.url) as other:
        ids = [client.request(1) for client in (one, other) for _ in range(3)]
        assert len({*ids}) == 6
        assert {take_request(channel).correlation_id for _ in ids} == {*ids}


def lose_its_queue(client: FibonacciRpcClient, network: Network, broker: Broker) -> None:
    """Delete the callback queue, as a person may on the management page."""
    client.channel.queue_delete(queue=client.callback_queue)


def lose_the_connection(client: FibonacciRpcClient, network: Network, broker: Broker) -> None:
    """Cut the connection while the client does not look."""
    network.cut()


def lose_its_channel(client: FibonacciRpcClient, network: Network, broker: Broker) -> None:
    """Have RabbitMQ close the channel."""
    with pytest.raises(ChannelClosedByBroker):
        client.channel.queue_declare(queue="nowhere", passive=True)


def be_idle(client: FibonacciRpcClient, network: Network, broker: Broker) -> None:
    """Call nothing for longer than RabbitMQ waits for a heartbeat."""

    def is_gone() -> bool:
        with broker.channel() as channel:
            try:
                channel.queue_declare(queue=client.callback_queue, passive=True)
            except ChannelClosedByBroker as error:
                return bool(
                    error.reply_code == 404
                )  # it is another connection's as long as it is there
        return False

    wait_until(is_gone, "RabbitMQ to close the connection")


@pytest.mark.parametrize("lose", [lose_its_queue, lose_the_connection, lose_its_channel, be_idle])
def test_the_second_call_is_right(
    run: Run, broker: Broker, lose: Callable[[FibonacciRpcClient, Network, Broker], None]
) -> None:
    run(SERVER).expect_ready()
    with Network(broker.url) as network, client_at(f"{network.url}?heartbeat=1") as client:
        for _ in range(2):
            assert client.call(10) == 55
            lose(client, network, broker)
            try:
                assert client.call(12) == 144
            except AMQPError:
                assert client.call(12) == 144
            assert client.requests == {}


def test_a_request_that_cannot_be_sent_leaves_nothing_behind(run: Run, broker: Broker) -> None:
    run(SERVER).expect_ready()
    with Network(broker.url) as network, client_at(network.url) as client:
        with pytest.raises(ValueError, match="digits"):
            client.request(10**5000)
        assert client.requests == {}
        with pytest.raises(TimeoutError):
            client.request(10, timeout=float("nan"))
        assert client.requests == {}
        network.cut()
        with pytest.raises(AMQPError):
            client.call(10)
        assert client.requests == {}
        assert client.call(10) == 55


def test_a_broker_that_is_gone_is_an_error_of_each_call(broker: Broker, queue: str) -> None:
    with Network(broker.url) as network, client_at(f"{network.url}?stack_timeout=1") as client:
        network.mode = "reset"
        network.cut()
        for _ in range(3):
            with pytest.raises((AMQPError, OSError)):
                client.call(10)
            assert client.requests == {}


@pytest.mark.usefixtures("queue")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_leaving_is_quick_though_the_broker_is_silent(broker: Broker) -> None:
    with Network(broker.url) as network:
        with client_at(network.url) as client:
            network.mode = "silent"
            with pytest.raises(TimeoutError):
                client.call(10, timeout=0.5)
            began = time.monotonic()
        assert time.monotonic() - began < 10  # it was thirty; one, on an idle machine
        assert client.requests == {}
        # pika cannot close a connection without RabbitMQ's answer, and leaves that to Python.
        del client
        gc.collect()


def test_an_error_within_the_with_statement_is_not_hidden(broker: Broker) -> None:
    with pytest.raises(KeyError), client_at(broker.url):
        raise KeyError


@pytest.mark.usefixtures("queue")
def test_leaving_before_all_answers_are_there(broker: Broker, channel: BlockingChannel) -> None:
    with client_at(broker.url) as client:
        ids = [client.request(n) for n in (1, 2)]
        answer(channel, take_request(channel), b"1")
        assert client.result(ids[0]) == 1
    assert client.connection.is_closed
    assert client.requests.keys() == {ids[1]}
