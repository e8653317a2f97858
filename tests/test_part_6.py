"""RPC: the statements of Part VI, in the order in which the text makes them."""

import time

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from part_6.rpc_client import FibonacciRpcClient, RpcError
from testbed.broker import Broker, OwnBroker
from testbed.waiting import wait_until
from tests.conftest import Run, Variant

CLIENT, SERVER, QUEUE = "part_6/rpc_client.py", "part_6/rpc_server.py", "rpc_queue"

# The lines of rpc_server.py that a statement is about.
COMPUTE = "    current, following = 0, 1\n"
ACKNOWLEDGE = "    channel.basic_ack(delivery_tag=method.delivery_tag)\n"


def slow(variant: Variant, seconds: float) -> str:
    """Return the path of a server that takes so long for a request."""
    return variant(SERVER, (COMPUTE, f"    time.sleep({seconds})\n{COMPUTE}"))


def client_of(broker: Broker) -> FibonacciRpcClient:
    """Return the tutorial's client, as another program uses it."""
    return FibonacciRpcClient(broker.url)


def take(channel: BlockingChannel, queue: str) -> tuple[BasicProperties, bytes]:
    """Take a message out of the queue as soon as there is one; return its properties and body."""

    def get() -> tuple[BasicProperties, bytes] | None:
        _, properties, body = channel.basic_get(queue=queue, auto_ack=True)
        return None if properties is None or body is None else (properties, body)

    message = wait_until(get, f"a message in {queue}")
    assert message
    return message


def take_request(channel: BlockingChannel) -> BasicProperties:
    """Take a request out of the queue, as a server does, and return its properties."""
    return take(channel, QUEUE)[0]


def answer(channel: BlockingChannel, request: BasicProperties, text: str) -> None:
    """Answer a request, as rpc_server.py does."""
    channel.basic_publish(
        exchange="",
        routing_key=str(request.reply_to),
        body=text.encode(),
        properties=BasicProperties(correlation_id=request.correlation_id),
    )


@pytest.mark.claim("VI-call")
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


@pytest.mark.claim("VI-one-callback-queue")
def test_many_calls_use_one_callback_queue(
    run: Run, managed_broker: Broker, channel: BlockingChannel
) -> None:
    channel.queue_declare(queue=QUEUE, durable=True)
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


@pytest.mark.claim("VI-unknown-id")
def test_an_answer_with_an_unknown_id_is_ignored(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare(queue=QUEUE, durable=True)
    with client_of(broker) as client:
        correlation_id = client.request(30)
        request = take_request(channel)
        for unknown in ("unknown", None):
            stray = BasicProperties(reply_to=request.reply_to, correlation_id=unknown)
            answer(channel, stray, "1")
        answer(channel, request, "832040")
        assert client.result(correlation_id) == 832040


@pytest.mark.claim("VI-duplicate")
def test_a_request_done_twice_is_answered_once(run: Run, broker: Broker, variant: Variant) -> None:
    dying = variant(
        SERVER, (ACKNOWLEDGE, "    channel.connection.process_data_events()\n    os._exit(9)\n")
    )
    server = run(dying).expect_ready()
    with client_of(broker) as client:
        assert client.call(30) == 832040
        assert server.wait() == 9
        successor = run(SERVER).expect("fib(30)")
        assert client.call(5) == 5
    successor.expect("fib(5)")
    assert successor.out[1:] == [" [.] fib(30)", " [.] fib(5)"]


def test_a_second_answer_and_a_late_one_are_ignored(
    broker: Broker, channel: BlockingChannel
) -> None:
    channel.queue_declare(queue=QUEUE, durable=True)
    with client_of(broker) as client:
        late = client.request(30, timeout=0.1)
        late_request = take_request(channel)
        with pytest.raises(TimeoutError):
            client.result(late)
        following = client.request(12)
        request = take_request(channel)
        answer(channel, late_request, "832040")
        for text in ("144", "1"):
            answer(channel, request, text)
        last = client.request(5)
        answer(channel, take_request(channel), "5")
        assert client.result(last) == 5  # it came after both answers to the other
        assert client.result(following) == 144
        assert client.requests == {}


@pytest.mark.claim("VI-killed-server")
def test_a_server_killed_in_a_request_loses_nothing(
    run: Run, broker: Broker, variant: Variant
) -> None:
    killed = run(slow(variant, 30)).expect_ready()
    with client_of(broker) as client:
        correlation_id = client.request(30)
        killed.expect("fib(30)")
        run(SERVER).expect_ready()
        killed.kill()
        assert client.result(correlation_id) == 832040


@pytest.mark.claim("VI-scale")
def test_two_servers_share_the_load(run: Run, broker: Broker, variant: Variant) -> None:
    heavy_and_light = "    time.sleep(4 if n == 30 else 0.1)\n"
    script = variant(SERVER, (COMPUTE, heavy_and_light + COMPUTE))
    servers = [run(script).expect_ready() for _ in range(2)]

    def done() -> list[int]:
        return [len(server.out) - 1 for server in servers]

    with client_of(broker) as client:
        for correlation_id in [client.request(n) for n in range(20)]:
            client.result(correlation_id)
        wait_until(lambda: sum(done()) == 20, "a line for each request")
        shares = done()
        assert min(shares) >= 8

        # Fairly is not blindly: while one is busy, the other gets all of the light requests.
        heavy, *light = [client.request(n) for n in (30, *range(1, 7))]
        for correlation_id in light:
            client.result(correlation_id)
        assert client.requests.keys() == {heavy}
        assert client.requests[heavy].answer is None
        wait_until(lambda: sum(done()) == 27, "a line for each request")
        assert sorted(now - then for now, then in zip(done(), shares, strict=True)) == [1, 6]


@pytest.mark.claim("VI-many")
def test_answers_come_in_any_order(run: Run, broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare(queue=QUEUE, durable=True)
    with client_of(broker) as client:
        ids = [client.request(n) for n in (30, 5, 12)]
        requests = [take_request(channel) for _ in ids]  # all are there before any answer
        for request, text in zip(reversed(requests), ("144", "5", "832040"), strict=True):
            answer(channel, request, text)
        assert [client.result(correlation_id) for correlation_id in ids] == [832040, 5, 144]

    run(SERVER).expect_ready()
    script = run(CLIENT, "30", "5", "12")
    assert script.wait() == 0
    assert script.out == [
        " [x] Requesting fib(30), fib(5), fib(12)",
        " [.] fib(30) = 832040",
        " [.] fib(5) = 5",
        " [.] fib(12) = 144",
    ]


@pytest.mark.claim("VI-no-server")
def test_nobody_serves(run: Run, broker: Broker, channel: BlockingChannel) -> None:
    began = time.monotonic()
    no_queue = run(CLIENT, "--timeout", "60")
    assert no_queue.wait() == 1
    assert time.monotonic() - began < 10
    assert no_queue.error == [" [!] RpcError: there is no queue 'rpc_queue': start rpc_server.py"]

    channel.queue_declare(queue=QUEUE, durable=True)
    with client_of(broker) as client, pytest.raises(TimeoutError):
        client.call(30, timeout=0.3)
    # The request that nobody waits for any more is not worked on later.
    wait_until(lambda: broker.ready(QUEUE) == 0, "the request to expire")
    nobody = run(CLIENT, "--timeout", "0.2", "7")
    assert nobody.wait() == 1
    assert len(nobody.error) == 1
    assert "TimeoutError: no answer in time" in nobody.error[0]
    wait_until(lambda: broker.ready(QUEUE) == 0, "the request to expire")
    server = run(SERVER).expect_ready()
    with client_of(broker) as client:
        assert client.call(12) == 144
    server.expect("fib(12)")
    assert server.out[1:] == [" [.] fib(12)"]


@pytest.mark.claim("VI-bad-request")
def test_a_bad_request_is_answered_with_an_error(
    run: Run, broker: Broker, channel: BlockingChannel
) -> None:
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
    script = run(CLIENT, "-1")
    assert script.wait() == 1
    assert script.error == [" [!] RpcError: '-1' is not a whole number from 0 to 20000"]

    assert r" [.] fib(\x1b[31m)" in server.out
    broker.wait_for_acknowledgements(QUEUE)
    server.ctrl_c()
    assert server.wait() == 0
    assert server.error == [" [!] Dropped a request without reply_to: whom to answer?"] * len(bad)
    assert broker.ready(QUEUE) == 0  # all of them were acknowledged


@pytest.mark.claim("VI-reconnect")
def test_a_server_outlives_a_restart_of_the_broker(
    run: Run, own_broker: OwnBroker, variant: Variant
) -> None:
    server = run(SERVER).expect_ready()
    busy = run(slow(variant, 30)).expect_ready()
    waiting = run(CLIENT, "--timeout", "60", *["1"] * 2)
    busy.expect("fib(1)")
    own_broker.kill()
    server.expect("Connection lost").expect("Trying again in 1 s").expect("Trying again in 2 s")
    own_broker.start()

    assert waiting.wait() == 1
    assert len(waiting.error) == 1
    assert "No connection" in waiting.error[0]
    busy.kill()
    server.expect("[*] Waiting", times=2, seconds=30)
    with client_of(own_broker) as client:
        assert client.call(30) == 832040


def test_a_request_may_take_longer_than_the_heartbeat(
    run: Run, broker: Broker, variant: Variant
) -> None:
    server = run(slow(variant, 4), url=f"{broker.url}?heartbeat=1").expect_ready()
    with client_of(broker) as client:
        assert client.call(30, timeout=30) == 832040
    server.expect("fib(30)")
    assert server.out[1:] == [" [.] fib(30)"]
    assert server.error == []
