"""What the safety of the worker and of RPC costs, beside the plainest programs that do the same.

    make bench

Ours and the plain one run in turn, round after round, on the same broker. What counts is the ratio
within a round, since machines are noisy: its median, and its spread.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from part_6.rpc_client import FibonacciRpcClient
from tests.broker import KINDS, Broker, NoBrokerError, running, wait_until
from tests.terminal import REPOSITORY, script_environment

TASKS, CALLS = 2000, 500

_PLAIN_CONSUMER = """
import os, time, pika
channel = pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])).channel()
channel.queue_declare(queue=QUEUE, durable=True)
channel.basic_qos(prefetch_count=1)
channel.basic_consume(queue=QUEUE, on_message_callback=on_message)
channel.start_consuming()
"""

PLAIN_WORKER = f"""
QUEUE = "task_queue"
def on_message(channel, method, properties, body):
    print(f" [x] Received {{body.decode()}}", flush=True)
    time.sleep(body.count(b"."))
    print(" [x] Done", flush=True)
    channel.basic_ack(delivery_tag=method.delivery_tag)
{_PLAIN_CONSUMER}
"""

PLAIN_SERVER = f"""
QUEUE = "rpc_queue"
def fib(n):
    current, following = 0, 1
    for _ in range(n):
        current, following = following, current + following
    return current
def on_message(channel, method, properties, body):
    print(f" [.] fib({{int(body)}})", flush=True)
    channel.basic_publish(
        exchange="",
        routing_key=properties.reply_to,
        properties=pika.BasicProperties(correlation_id=properties.correlation_id),
        body=str(fib(int(body))),
    )
    channel.basic_ack(delivery_tag=method.delivery_tag)
{_PLAIN_CONSUMER}
"""


class PlainClient:
    """The plainest RPC client: one call at a time, no error, no time limit."""

    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.queue = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(
            queue=self.queue, on_message_callback=self.on_answer, auto_ack=True
        )
        self.correlation_id = ""
        self.answer: bytes | None = None

    def on_answer(
        self,
        _: BlockingChannel,
        method: Basic.Deliver,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        """Take the answer to the call under way."""
        if properties.correlation_id == self.correlation_id:
            self.answer = body

    def call(self, n: int) -> int:
        """Return the n-th Fibonacci number."""
        self.answer = None
        self.correlation_id = str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key="rpc_queue",
            properties=BasicProperties(reply_to=self.queue, correlation_id=self.correlation_id),
            body=str(n).encode(),
        )
        while self.answer is None:
            self.connection.process_data_events(time_limit=None)
        return int(self.answer)


@contextlib.contextmanager
def consumer(broker: Broker, queue: str, *command: str) -> Iterator[None]:
    """Run a Python program that consumes from the queue, while inside."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=script_environment(broker.url),
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: broker.consumers(queue) == 1, "the consumer")
            yield
        finally:
            process.kill()


def tasks_a_second(broker: Broker, *command: str) -> float:
    """Return how many empty tasks a worker does in a second."""
    with broker.channel() as channel:
        channel.queue_declare(queue="task_queue", durable=True)
        for _ in range(TASKS):
            channel.basic_publish(
                exchange="",
                routing_key="task_queue",
                body=b"task",
                properties=BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
            )

        def left() -> int:
            declared = channel.queue_declare(queue="task_queue", passive=True)
            return int(declared.method.message_count)

        wait_until(lambda: left() == TASKS, "all tasks to be in the queue")
        with consumer(broker, "task_queue", *command):
            # It has begun, so that its start does not count.
            first = left()
            began = time.perf_counter()
            wait_until(lambda: left() == 0, "all tasks to be taken", seconds=60)
            took = time.perf_counter() - began
    broker.clean()
    return first / took


def calls_a_second(call: Callable[[int], int]) -> float:
    """Return how many calls return in a second, one after the other."""
    began = time.perf_counter()
    for _ in range(CALLS):
        call(5)
    return CALLS / (time.perf_counter() - began)


def in_flight_a_second(client: FibonacciRpcClient) -> float:
    """Return how many calls return in a second, all sent before the first is waited for."""
    began = time.perf_counter()
    for correlation_id in [client.request(5, timeout=60) for _ in range(CALLS)]:
        client.result(correlation_id)
    return CALLS / (time.perf_counter() - began)


def measure(broker: Broker) -> dict[str, tuple[float, float]]:
    """Return one round: for each measure ours and what it is compared with, both per second."""
    results = {
        "worker.py, empty tasks: ours / plain": (
            tasks_a_second(broker, "part_2/worker.py"),
            tasks_a_second(broker, "-c", PLAIN_WORKER),
        )
    }
    with broker.channel() as channel:
        channel.queue_declare(queue="rpc_queue", durable=True)
    with FibonacciRpcClient(broker.url) as client:
        with consumer(broker, "rpc_queue", "part_6/rpc_server.py"):
            in_flight_a_second(client)  # warm
            ours = (in_flight_a_second(client), calls_a_second(client.call))
        with consumer(broker, "rpc_queue", "-c", PLAIN_SERVER):
            in_flight_a_second(client)
            plain_in_flight = in_flight_a_second(client)
            plain_client = PlainClient(broker.url)
            plain_calls = calls_a_second(plain_client.call)
            plain_client.connection.close()
    results[f"rpc_server.py, {CALLS} in flight: ours / plain"] = (ours[0], plain_in_flight)
    results["rpc, one call at a time: ours / plain"] = (ours[1], plain_calls)
    results[f"rpc, ours: {CALLS} in flight / one at a time"] = ours
    broker.clean()
    return results


def main() -> None:
    """Measure round after round, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", choices=KINDS, default="auto", help="as pytest's option")
    parser.add_argument("--rounds", type=int, default=7, help="how many (default: 7)")
    arguments = parser.parse_args()
    try:
        with running(arguments.broker, print) as broker:
            print(
                f"RabbitMQ {broker.version}, {broker.description}; Python"
                f" {sys.version.split()[0]}, pika {pika.__version__}, {os.cpu_count()} cores"
            )
            rounds = [measure(broker) for _ in range(arguments.rounds)]
    except NoBrokerError as error:
        sys.exit(f"{error}")
    print(f"{'median of ' + str(len(rounds)) + ' rounds':50} ratio  (min - max)    per second")
    for name in rounds[0]:
        ratios = [a / b for a, b in (one[name] for one in rounds)]
        first, second = (statistics.median(one[name][i] for one in rounds) for i in (0, 1))
        print(
            f"{name:50} {statistics.median(ratios):5.2f}  ({min(ratios):.2f} - {max(ratios):.2f})"
            f"  {first:6.0f} / {second:.0f}"
        )


if __name__ == "__main__":
    main()
