"""RPC: the statements of Part VI, in the order in which the text makes them."""

import gc
import signal
import time

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel as Channel
from pika.exceptions import AMQPError, ChannelClosedByBroker

from part_6.rpc_client import FibonacciRpcClient, RpcError
from testbed.broker import Broker, OwnBroker
from testbed.programs import CLIENT, SERVER
from testbed.programs import RPC_QUEUE as QUEUE
from testbed.terminal import Terminal
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.network import Network
from tests.scripts import answer, beginning, fails_with_one_line, take, take_request

# The programs on the way to these two. Each lacks something, which its docstring tells.
CLIENTS = {number: f"part_6/steps/rpc_client_{number}.py" for number in (1, 2)}
FIRST_SERVER = "part_6/steps/rpc_server_1.py"


@pytest.fixture
def run_slow(run: Run, variant: Variant) -> Run:
    """Run a server that takes so many seconds for each request."""

    def run_slow(seconds: float, **options: str) -> Terminal:
        slow = beginning(SERVER, "answer_to", f"time.sleep({seconds})")
        return run(variant(SERVER, slow), **options).expect_ready()

    return run_slow


def client_of(broker: Broker | Network, options: str = "") -> FibonacciRpcClient:
    """Return the tutorial's client, as another program uses it."""
    return FibonacciRpcClient(pika.URLParameters(broker.url + options))


@pytest.fixture
def channel(channel: Channel) -> Channel:
    """A channel, and the queue of requests, which no server consumes yet."""
    channel.queue_declare(queue=QUEUE, durable=True)
    return channel


@pytest.mark.claim("VI-call", "VI-many")
def test_a_call_returns_the_servers_answer(run: Run, broker: Broker) -> None:
    server = run(SERVER).expect_ready()
    with client_of(broker) as client:
        assert client.call(4) == 3
        assert client.call(30) == 832040
        assert [client.call(n) for n in (0, 1, 2)] == [0, 1, 1]
        assert len(str(client.call(20_000))) == 4180  # the largest can be printed, and read
    server.expect("fib(20000)")
    for arguments in ([], ["30"]):
        script = run(CLIENT, *arguments)
        assert script.wait() == 0
        assert script.out == [" [x] Requesting fib(30)", " [.] fib(30) = 832040"]
    script = run(CLIENT, "30", "5", "12")
    assert script.wait() == 0
    assert script.out == [
        " [x] Requesting fib(30), fib(5), fib(12)",
        " [.] fib(30) = 832040",
        " [.] fib(5) = 5",
        " [.] fib(12) = 144",
    ]


@pytest.mark.claim("VI-one-callback-queue")
def test_calls_use_one_callback_queue(run: Run, managed_broker: Broker, channel: Channel) -> None:
    before = set(managed_broker.queues())
    with client_of(managed_broker) as client:
        for n in range(3):
            client.request(n)
        reply_queues = {take_request(channel).reply_to for _ in range(3)}
        assert reply_queues == set(managed_broker.queues()) - before
        assert len(reply_queues) == 1
        run(SERVER).expect_ready()
        assert [client.call(n) for n in range(10, 15)] == [55, 89, 144, 233, 377]
        assert reply_queues == set(managed_broker.queues()) - before


def test_step_1_takes_any_answer_and_step_2_its_own(run: Run, channel: Channel) -> None:
    for script, result in ((CLIENTS[1], 1), (CLIENTS[2], 21)):
        client = run(script, "8")
        request = take_request(channel)
        stray = BasicProperties(reply_to=request.reply_to, correlation_id="unknown")
        answer(channel, stray, b"1")
        answer(channel, request, b"21")
        assert client.wait() == 0
        assert client.out == [" [x] Requesting fib(8)", f" [.] fib(8) = {result}"]


@pytest.mark.claim("VI-duplicate")
def test_a_request_done_twice_is_answered_once(run: Run, broker: Broker) -> None:
    with client_of(broker) as client:
        with broker.channel() as dying:
            dying.queue_declare(queue=QUEUE, durable=True)
            correlation_id = client.request(30, timeout=60)
            request = take_request(dying, auto_ack=False)
            answer(dying, request, b"832040")
            assert client.result(correlation_id) == 832040
        # This server went after its answer and before its acknowledgement.
        successor = run(SERVER).expect("fib(30)")
        assert client.call(5) == 5
        assert client.requests == {}
    successor.expect("fib(5)")
    assert successor.out[1:] == [" [.] fib(30)", " [.] fib(5)"]


@pytest.mark.claim("VI-unknown-id")
def test_an_unknown_answer_a_second_and_a_late_one_are_ignored(
    broker: Broker, channel: Channel
) -> None:
    with client_of(broker) as client:
        late = client.request(30, timeout=0.1)
        late_request = take_request(channel)
        with pytest.raises(TimeoutError):
            client.result(late)
        following = client.request(12)
        request = take_request(channel)
        answer(channel, late_request, b"832040")
        for unknown in ("unknown", None):
            stray = BasicProperties(reply_to=request.reply_to, correlation_id=unknown)
            answer(channel, stray, b"1")
        for body in (b"144", b"1"):
            answer(channel, request, body)
        last = client.request(5)
        answer(channel, take_request(channel), b"5")
        assert client.result(last) == 5  # it came after both answers to the other
        assert client.result(following) == 144
        assert client.requests == {}


@pytest.mark.claim("VI-killed-server")
def test_a_server_killed_in_a_request_loses_nothing(
    run: Run, run_slow: Run, broker: Broker
) -> None:
    killed = run_slow(seconds=50)
    with client_of(broker) as client:
        correlation_id = client.request(30, timeout=60)
        killed.expect("fib(30)")
        run(SERVER).expect_ready()
        killed.kill()
        assert client.result(correlation_id) == 832040


@pytest.mark.claim("VI-scale")
def test_two_servers_share_the_load(run_slow: Run, managed_broker: Broker) -> None:
    servers = [run_slow(seconds=0.1) for _ in range(2)]

    def done(requests: int) -> list[int]:
        """Return how many each server had, once so many are printed: answers may come earlier."""
        wait_until(
            lambda: sum(len(server.out) - 1 for server in servers) >= requests,
            f"{requests} requests to be with servers that work",
        )
        return [len(server.out) - 1 for server in servers]

    with client_of(managed_broker) as client:
        for correlation_id in [client.request(n) for n in range(20)]:
            client.result(correlation_id)
        shares = done(20)
        assert sum(shares) == 20
        assert min(shares) >= 5

        # Fairly is not blindly: while one is busy, the other gets all that it cannot take.
        managed_broker.wait_for_acknowledgements(QUEUE)
        servers[0].process.send_signal(signal.SIGSTOP)
        requests = [client.request(n, timeout=60) for n in range(7)]
        assert done(26) == [shares[0], shares[1] + 6]  # the seventh is with the one that is busy
        servers[0].process.send_signal(signal.SIGCONT)
        assert [client.result(request) for request in requests] == [0, 1, 1, 2, 3, 5, 8]
        assert done(27) == [shares[0] + 1, shares[1] + 6]


@pytest.mark.claim("VI-many")
def test_answers_come_in_any_order(broker: Broker, channel: Channel) -> None:
    with client_of(broker) as client:
        ids = [client.request(n) for n in (30, 5, 12)]
        requests = [take_request(channel) for _ in ids]  # all are there before any answer
        for request, body in zip(reversed(requests), (b"144", b"5", b"832040"), strict=True):
            answer(channel, request, body)
        assert [client.result(correlation_id) for correlation_id in ids] == [832040, 5, 144]


@pytest.mark.claim("VI-no-server")
def test_nobody_serves(run: Run, broker: Broker) -> None:
    began = time.monotonic()
    no_queue = "RpcError: there is no queue 'rpc_queue', so no server to answer"
    fails_with_one_line(run(CLIENT, "--timeout", "60"), no_queue)
    assert time.monotonic() - began < 30

    with broker.channel() as channel:
        channel.queue_declare(queue=QUEUE, durable=True)
    with client_of(broker) as client, pytest.raises(TimeoutError):
        client.call(30, timeout=0.3)
    # The request that nobody waits for any more is not worked on later.
    broker.wait_for_ready(QUEUE, 0)
    fails_with_one_line(run(CLIENT, "--timeout", "0.2", "7"), "no answer in time")
    broker.wait_for_ready(QUEUE, 0)
    server = run(SERVER).expect_ready()
    with client_of(broker) as client:
        assert client.call(12) == 144
    server.expect("fib(12)")
    assert server.out[1:] == [" [.] fib(12)"]


def test_step_2_waits_for_a_server_however_long_it_takes(
    run: Run, broker: Broker, channel: Channel
) -> None:
    waiting = run(CLIENTS[2], "8")
    broker.wait_for_ready(QUEUE, 1)
    assert run(CLIENT, "--timeout", "1").wait() == 1
    assert waiting.process.poll() is None
    run(FIRST_SERVER).expect_ready()
    assert waiting.wait() == 0
    assert waiting.out[1:] == [" [.] fib(8) = 21"]


@pytest.mark.claim("VI-bad-request")
def test_a_bad_request_gets_an_error(run: Run, broker: Broker, channel: Channel) -> None:
    server = run(SERVER).expect_ready()
    callback_queue = str(channel.queue_declare(queue="", exclusive=True).method.queue)
    bad = [b"many", b"-1", b"", b"\xff\xfe", b"1e3", b"20001", b"9" * 5000, b"1_0", b" 1", b"0x1"]
    bad += [b"\x1b[31m"]  # which would colour a terminal that it came to as it is
    for number, body in enumerate(bad):
        for reply_to in (None, "nobody's queue", callback_queue):
            properties = BasicProperties(reply_to=reply_to, correlation_id=str(number))
            channel.basic_publish(exchange="", routing_key=QUEUE, body=body, properties=properties)
    for number, _ in enumerate(bad):
        properties, said = take(channel, callback_queue)
        assert properties.correlation_id == str(number)
        assert properties.type == "error"
        assert b"is not a whole number from 0 to 20000" in said

    with client_of(broker) as client:
        for n in (-1, 20_001, 10**4000):
            with pytest.raises(RpcError, match="is not a whole number from 0 to 20000"):
                client.call(n)
        assert client.call(30) == 832040
    refused = "RpcError: '-1' is not a whole number from 0 to 20000"
    fails_with_one_line(run(CLIENT, "-1"), refused)

    broker.wait_for_acknowledgements(QUEUE)
    server.ctrl_c()
    assert server.wait() == 0
    assert server.error == []
    assert r" [.] fib(\x1b[31m)" in server.out
    assert broker.ready(QUEUE) == 0  # all of them were acknowledged


def test_a_bad_request_ends_step_1_of_the_server_and_then_the_next(
    run: Run, broker: Broker, channel: Channel
) -> None:
    properties = BasicProperties(reply_to="nobody's queue")
    channel.basic_publish(exchange="", routing_key=QUEUE, body=b"many", properties=properties)
    for _ in range(2):
        server = run(FIRST_SERVER)
        assert server.wait() == 1
        assert "ValueError" in server.error[-1]
        broker.wait_for_ready(QUEUE, 1)


@pytest.mark.claim("VI-foreign-answer")
def test_an_answer_that_is_no_number_or_says_that_it_is_an_error_is_one(
    broker: Broker, channel: Channel
) -> None:
    foreign = (b"", b"many", b"-1", b"1_0", b" 1", b"1.0", b"\xff", "²".encode(), b"9" * 5000)
    wrong_answers = [
        ("error", b"not today: \xff", "not today: \ufffd"),
        *((None, body, "the answer is no number") for body in foreign),
    ]
    with client_of(broker) as client:
        for kind, body, error in wrong_answers:
            wrong, right = client.request(30), client.request(12)
            answer(channel, take_request(channel), body, kind)
            answer(channel, take_request(channel), b"144")
            with pytest.raises(RpcError, match=error):
                client.result(wrong)
            assert client.result(right) == 144
        assert client.requests == {}


@pytest.mark.claim("VI-reconnect")
def test_a_server_outlives_a_restart_of_the_broker(
    run: Run, run_slow: Run, own_broker: OwnBroker
) -> None:
    busy = run_slow(seconds=50)
    waiting = run(CLIENT, "--timeout", "60", "1")
    busy.expect("fib(1)")
    server = run(SERVER).expect_ready()
    own_broker.kill()
    server.expect("Connection lost").expect("Trying again in 1 s").expect("Trying again in 2 s")
    busy.expect("Connection lost")
    fails_with_one_line(waiting, "StreamLostError")
    busy.kill()

    own_broker.start()
    server.expect("[*] Waiting", times=2)
    with client_of(own_broker) as client:
        assert client.call(30) == 832040


def test_a_request_may_take_longer_than_the_heartbeat(run_slow: Run, broker: Broker) -> None:
    server = run_slow(seconds=9, url=f"{broker.url}?heartbeat=2")
    with client_of(broker) as client:
        assert client.call(30, timeout=40) == 832040
    assert server.out[1:] == [" [.] fib(30)"]
    assert server.error == []


# The class, as another program uses it: each call ends right, or in a clear error.


FORK = """
import os, pika
from part_6.rpc_client import FibonacciRpcClient, RpcError
with FibonacciRpcClient(pika.URLParameters(os.environ["RABBITMQ_URL"])) as client:
    if os.fork() == 0:
        try:
            client.call(10)
        except RpcError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
    print(client.call(10))
"""


def test_a_client_is_refused_to_another_process(run: Run) -> None:
    run(SERVER).expect_ready()
    forked = run("-c", FORK)
    assert forked.wait() == 0
    assert forked.out == ["this client was made by another process", "55"]


def test_ids_are_unique_among_clients(broker: Broker, channel: Channel) -> None:
    with client_of(broker) as one, client_of(broker) as other:
        ids = [client.request(1) for client in (one, other) for _ in range(3)]
        assert len({*ids}) == 6
        assert {take_request(channel).correlation_id for _ in ids} == {*ids}


@pytest.mark.claim("VI-reconnect")
def test_the_second_call_is_right_whatever_was_lost(run: Run, broker: Broker) -> None:
    def delete_its_queue() -> None:  # as a person may on the management page
        client.channel.queue_delete(queue=client.callback_queue)

    def have_rabbitmq_close_its_channel() -> None:
        with pytest.raises(ChannelClosedByBroker):
            client.channel.queue_declare(queue="nowhere", passive=True)

    def be_idle() -> None:  # for longer than RabbitMQ waits for a heartbeat
        wait_until(lambda: not network.connections, "RabbitMQ to close the connection")

    run(SERVER).expect_ready()
    with Network(broker.url) as network, client_of(network, "?heartbeat=1") as client:
        for lose in (delete_its_queue, network.cut, have_rabbitmq_close_its_channel, be_idle):
            print(lose.__name__)  # which is shown if a call raises
            for _ in range(2):
                assert client.call(10) == 55, lose
                lose()
                try:
                    assert client.call(12) == 144, lose
                except AMQPError:
                    assert client.call(12) == 144, lose
                assert client.requests == {}, lose


def test_a_lost_connection_is_an_error_of_each_request_under_way_and_of_each_until_it_is_back(
    broker: Broker, channel: Channel
) -> None:
    with Network(broker.url) as network, client_of(network, "?stack_timeout=1") as client:
        under_way = [client.request(n) for n in range(3)]
        network.mode = "reset"
        network.cut()
        for correlation_id in under_way:
            with pytest.raises(AMQPError):
                client.result(correlation_id)
        assert client.requests == {}
        for _ in range(3):
            with pytest.raises((AMQPError, OSError)):
                client.call(10)
            assert client.requests == {}


@pytest.mark.usefixtures("channel")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_leaving_is_quick_though_the_broker_is_silent(broker: Broker) -> None:
    with Network(broker.url) as network:
        with client_of(network) as client:
            network.mode = "silent"
            with pytest.raises(TimeoutError):
                client.call(10, timeout=0.5)
            began = time.monotonic()
        assert time.monotonic() - began < 15  # it was thirty; one, on an idle machine
        assert client.requests == {}
        # pika cannot close a connection without RabbitMQ's answer, and leaves that to Python.
        del client
        gc.collect()


def test_an_error_within_the_with_statement_is_not_hidden(broker: Broker) -> None:
    with pytest.raises(KeyError), client_of(broker):
        raise KeyError


def test_leaving_before_all_answers_are_there(broker: Broker, channel: Channel) -> None:
    with client_of(broker) as client:
        ids = [client.request(n) for n in (1, 2)]
        answer(channel, take_request(channel), b"1")
        assert client.result(ids[0]) == 1
    assert client.connection.is_closed
    assert client.requests.keys() == {ids[1]}
