"""recipes/rpc_client.py: what its page states, from many threads, over connections that break."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pika
import pytest
import requests
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from recipes.rpc_client import FibonacciRpcClient, RpcError
from testbed.broker import Broker, OwnBroker
from testbed.settings import free_ports
from testbed.waiting import wait_until
from tests.conftest import Run, Variant
from tests.network import Network
from tests.scripts import answer, take_request

SCRIPT, SERVER, QUEUE = "recipes/rpc_client.py", "part_6/rpc_server.py", "rpc_queue"
FIBONACCI = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181]
COMPUTE = "    current, following = 0, 1\n"


@contextmanager
def calling(url: str) -> Iterator[tuple[FibonacciRpcClient, ThreadPoolExecutor]]:
    """Yield the recipe's client, and threads to call from; no call leaves anything behind in it."""
    with FibonacciRpcClient(pika.URLParameters(url)) as client, ThreadPoolExecutor(8) as threads:
        yield client, threads
    assert client._answers == {}


@pytest.mark.claim("recipe-rpc-threads", "recipe-rpc-reconnects")
def test_two_hundred_calls_from_eight_threads_before_and_after_a_lost_connection(
    run: Run, own_broker: OwnBroker
) -> None:
    run(SERVER).expect_ready()
    numbers = [n % 20 for n in range(200)]
    with calling(own_broker.url) as (client, threads):
        assert list(threads.map(client.call, numbers)) == [FIBONACCI[n] for n in numbers]
        own_broker.ctl("close_all_connections", "maintenance")
        wait_until(lambda: client._thread is None, "the client to see it")
        assert list(threads.map(client.call, numbers)) == [FIBONACCI[n] for n in numbers]


@pytest.mark.claim("recipe-rpc-lost")
def test_calls_under_way_when_the_connection_is_lost_say_so(own_broker: OwnBroker) -> None:
    with own_broker.channel() as channel:
        channel.queue_declare(queue=QUEUE, durable=True)
    with calling(own_broker.url) as (client, threads):
        calls = [threads.submit(client.call, n, 60) for n in range(8)]
        own_broker.wait_for_ready(QUEUE, 8)
        own_broker.ctl("close_all_connections", "maintenance")
        for call in calls:
            with pytest.raises(AMQPError, match="maintenance"):
                call.result(20)
        with own_broker.channel() as channel:
            channel.queue_purge(queue=QUEUE)
            call = threads.submit(client.call, 10)
            answer(channel, take_request(channel), b"55")
            assert call.result(10) == 55


def test_without_rabbitmq_each_call_says_so_at_once(broker: Broker) -> None:
    (port,) = free_ports(1)
    with calling(f"amqp://guest:guest@localhost:{port}/%2F") as (client, threads):
        for call in [threads.submit(client.call, 10, 60) for _ in range(8)]:
            assert "refused" in repr(call.exception(20))


@pytest.mark.claim("recipe-rpc-alone")
def test_a_call_that_fails_fails_alone(run: Run, broker: Broker, variant: Variant) -> None:
    server = variant(SERVER, (COMPUTE, f"    time.sleep(2 if n == 19 else 0)\n{COMPUTE}"))
    with calling(broker.url) as (client, threads):
        with pytest.raises(RpcError, match="no queue 'rpc_queue'"):
            client.call(10)
        run(server).expect_ready()
        assert client.call(10) == 55
        good = [threads.submit(client.call, n) for n in range(10)]
        for number, timeout, error, text in (
            (-1, 10, RpcError, "whole number"),
            (20_001, 10, RpcError, "whole number"),
            (10**5_000, 10, ValueError, "digits"),
            (10, float("nan"), TimeoutError, "no time"),
            (10, 0, TimeoutError, "no time"),
            (10, -0.5, TimeoutError, "no time"),
            (10, 1e-6, TimeoutError, "no answer"),
            (19, 0.5, TimeoutError, "no answer"),
        ):
            with pytest.raises(error, match=text):
                client.call(number, timeout)
        assert [call.result(10) for call in good] == FIBONACCI[:10]
        assert client.call(11, timeout=float("inf")) == 89
        assert client.call(12) == 144  # and not the late answer for 19


@pytest.mark.claim("recipe-rpc-answers")
def test_unknown_second_late_and_foreign_answers(broker: Broker, channel: BlockingChannel) -> None:
    channel.queue_declare(queue=QUEUE, durable=True)
    with calling(broker.url) as (client, threads):
        late = threads.submit(client.call, 30, 2)
        late_request = take_request(channel)
        with pytest.raises(TimeoutError):
            late.result(10)
        call = threads.submit(client.call, 12)
        request = take_request(channel)
        answer(channel, late_request, b"832040")
        for stray in ("unknown", None):
            answer(channel, BasicProperties(reply_to=request.reply_to, correlation_id=stray), b"1")
        for body in (b"144", b"1"):
            answer(channel, request, body)
        assert call.result(10) == 144
        for foreign in (b"", b"abc", b"-1", b"1_0", b" 5", b"\xb2", b"9" * 5_000):
            call = threads.submit(client.call, 12)
            answer(channel, take_request(channel), foreign)
            with pytest.raises(RpcError, match="no number"):
                call.result(10)


@pytest.mark.claim("recipe-rpc-idle")
def test_a_client_may_be_idle_for_longer_than_a_heartbeat(run: Run, broker: Broker) -> None:
    run(SERVER).expect_ready()
    with calling(f"{broker.url}?heartbeat=1") as (client, _):
        assert client.call(10) == 55
        channel, idle_since = client._channel, time.monotonic()
        wait_until(lambda: time.monotonic() - idle_since > 5, "five heartbeats")
        assert client.call(11) == 89
        assert client._channel is channel  # the connection is the first one still


@pytest.mark.claim("recipe-rpc-quick")
def test_leaving_is_quick_when_rabbitmq_is_silent(
    own_broker: OwnBroker, channel: BlockingChannel
) -> None:
    channel.queue_declare(queue=QUEUE, durable=True)
    with calling(own_broker.url) as (client, threads):
        call = threads.submit(client.call, 10)
        answer(channel, take_request(channel), b"55")
        assert call.result(10) == 55
        own_broker.pause()
        try:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                client.call(10, timeout=1)
            client.close()
            assert time.monotonic() - began < 4
        finally:
            own_broker.resume()
        with pytest.raises(RpcError, match="closed"):
            client.call(10)
        wait_until(lambda: client._thread is None, "the end of its thread")


@pytest.mark.claim("recipe-rpc-fork")
def test_a_client_from_before_a_fork_is_right_in_both_processes(run: Run, broker: Broker) -> None:
    run(SERVER).expect_ready()
    script = run(
        "-c",
        "import os, pika\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from recipes.rpc_client import RABBITMQ_URL, FibonacciRpcClient\n"
        "client = FibonacciRpcClient(pika.URLParameters(RABBITMQ_URL))\n"
        "assert client.call(10) == 55\n"
        "child = os.fork()\n"
        "numbers = [12, 13] * 50 if child else [14, 15] * 50\n"
        "with ThreadPoolExecutor(8) as threads:\n"
        "    print(sorted(set(threads.map(client.call, numbers))), flush=True)\n"
        "client.close()\n"
        "if child: print(os.waitpid(child, 0)[1], flush=True)\n"
        "else: os._exit(0)\n",
    )
    assert script.wait(30) == 0
    assert sorted(script.out) == ["0", "[144, 233]", "[377, 610]"]


def test_the_program_prints_answers_in_order_and_errors_in_one_line(
    run: Run, broker: Broker
) -> None:
    run(SERVER).expect_ready()
    script = run(SCRIPT, "30", "5", "12")
    assert script.wait() == 0
    assert script.out == [" [.] fib(30) = 832040", " [.] fib(5) = 5", " [.] fib(12) = 144"]
    script = run(SCRIPT, "20001")
    assert script.wait() == 1
    assert script.out == []
    (line,) = script.error
    assert line.startswith(" [!] ")
    assert "20001" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_the_program_does_not_claim_success(
    run: Run, broker: Broker, channel: BlockingChannel, number: signal.Signals
) -> None:
    channel.queue_declare(queue=QUEUE, durable=True)
    script = run(SCRIPT, "30")
    take_request(channel)
    script.process.send_signal(number)
    assert script.wait(5) != 0
    assert "Traceback" not in "\n".join(script.error)


@pytest.mark.claim("recipe-web")
def test_a_web_server_uses_both(run: Run, broker: Broker) -> None:
    (port,) = free_ports(1)
    run(SERVER).expect_ready()
    server = run("recipes/web.py", str(port)).expect("http://")
    address = f"http://127.0.0.1:{port}"
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(
            lambda n: requests.get(f"{address}/fib/{n % 20}", timeout=20), range(80)
        )
        assert [int(answer.text) for answer in answers] == FIBONACCI * 4
        posts = [
            threads.submit(requests.post, f"{address}/jobs", b"x%d" % n, timeout=20)
            for n in range(80)
        ]
        assert {post.result().status_code for post in posts} == {200}
    assert requests.get(f"{address}/fib/-1", timeout=20).status_code == 502
    assert broker.ready("jobs") == 80
    with broker.channel() as channel:
        channel.queue_delete(queue="jobs")
    refused = requests.post(f"{address}/jobs", b"no queue", timeout=20)
    assert (refused.status_code, "NO_ROUTE" in refused.text) == (502, True)
    server.terminate()
    assert server.wait() == 0


def test_a_client_whose_thread_could_not_be_started_starts_one_later(
    run: Run, broker: Broker
) -> None:
    run(SERVER).expect_ready()
    with calling(broker.url) as (client, _):
        size = threading.stack_size(1 << 46)  # so much that no thread can be started
        try:
            with pytest.raises(RuntimeError, match="thread"):
                client.call(5)
        finally:
            threading.stack_size(size)
        assert client.call(5, timeout=30) == 5


def test_what_rabbitmq_or_the_network_refuses_is_pikas_error(own_broker: OwnBroker) -> None:
    own_broker.management("users/reader", "PUT", {"password": "reader", "tags": ""})
    try:
        may_not_send = {"configure": ".*", "write": "^$", "read": ".*"}
        own_broker.management("permissions/%2F/reader", "PUT", may_not_send)
        url = own_broker.url.replace("guest:guest", "reader:reader")
        with FibonacciRpcClient(pika.URLParameters(url)) as client:
            for _ in range(3):
                with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
                    client.call(5, timeout=30)
    finally:
        own_broker.management("users/reader", "DELETE")
    with (
        Network(own_broker.url, mode="silent") as network,
        FibonacciRpcClient(pika.URLParameters(f"{network.url}?stack_timeout=0.5")) as client,
        pytest.raises(AMQPError, match="Timeout"),
    ):
        client.call(5, timeout=30)
