# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Do the tasks of a queue, several at a time. What fails is tried again later, then set aside.

    python recipes/worker.py --queue jobs --parallel 4

A task is a message with a JSON body, as recipes/publisher.py sends it. Put your code into `work`.
"""

import json
import logging
import os
import re
import signal
import sys
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import (
    AMQPChannelError,
    AMQPError,
    ChannelClosedByBroker,
    NackError,
    UnroutableError,
)
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
RETRY_DELAYS = (5, 30, 180)  # seconds until the second, the third, and the fourth and last try

log = logging.getLogger("worker")
# What pika raises if it cannot connect, or has lost the connection or the channel.
LOST = (AMQPError, AMQPConnectorException, OSError)
REFUSED = (NackError, ChannelClosedByBroker)  # RabbitMQ does not take what we publish
Delivery = tuple[BlockingChannel, Basic.Deliver, BasicProperties, bytes]


class Unrecoverable(Exception):  # noqa: N818 - the task is wrong, and not the program
    """Raise it in `work` for a task that no other try could do. It is set aside at once."""


def work(task: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Do one task and return its result. Put your own code here.

    It runs in a thread that must not use the connection, and may get the same task twice.
    """
    time.sleep(task)  # which stands in for real work: a task is a number of seconds
    return f"slept {task} s"


def attempt(body: bytes, redelivered: bool) -> bytes:  # noqa: FBT001 - as RabbitMQ says it
    """Return the result of the task in a message's body. Both are JSON."""
    if redelivered:  # perhaps the task killed its worker, so that one counts as a try
        raise ConnectionError("the worker that had it was lost")
    try:
        task = json.loads(body)
    except ValueError as error:
        raise Unrecoverable(f"the body is not JSON: {error}") from None
    return json.dumps(work(task)).encode()


class Worker:
    """Does the tasks of a queue. The thread that calls `serve` owns the connection."""

    def __init__(self, queue: str, parallel: int) -> None:
        self.queue, self.parallel, self.pool = queue, parallel, ThreadPoolExecutor(parallel)
        self.running: dict[Future[bytes], Delivery] = {}
        self.connected = self.stopping = False
        self.out: BlockingChannel | None = None  # of its own, for what we publish
        self.pause = 0  # seconds that it waited before it connected again

    def stop(self, number: int, _: object) -> None:
        """Finish the tasks that have begun. If not connected, or told twice, end at once."""
        if self.stopping or not self.connected:
            os._exit(128 + number if self.stopping else 0)
        self.stopping = True

    def serve(self, parameters: pika.URLParameters) -> None:
        """Work, and connect again after a growing pause whenever the connection is lost."""
        while not self.stopping:
            try:
                with pika.BlockingConnection(parameters) as connection:
                    self.consume(connection.channel())
            except LOST as error:
                if self.stopping or not (self.connected or self.pause):
                    raise  # the first connection of all: the address may be wrong
                self.connected = False
                while self.running:  # RabbitMQ sends them again
                    self.running.popitem()[0].cancel()  # unless it has begun
                self.pause = min(2 * self.pause or 1, 30)
                log.warning(" [!] Connection lost: %r. Trying again in %d s", error, self.pause)
                time.sleep(self.pause)

    def consume(self, channel: BlockingChannel) -> None:
        """Do tasks until we are told to stop, and finish those that have begun."""
        channel.queue_declare(queue=self.queue, durable=True)
        channel.queue_declare(queue=f"{self.queue}.failed", durable=True)
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": self.queue}
        for delay in RETRY_DELAYS:  # a queue each, as only the first message of a queue expires
            name, delayed = f"{self.queue}.retry.{delay}s", {"x-message-ttl": 1000 * delay, **back}
            channel.queue_declare(queue=name, durable=True, arguments=delayed)
        channel.basic_qos(prefetch_count=self.parallel)  # so that no task waits for a thread
        channel.basic_consume(queue=self.queue, on_message_callback=self.begin)
        self.connected = True
        log.info(" [*] Waiting for tasks in %s. To exit press CTRL+C", self.queue)
        while not self.stopping:
            channel.connection.process_data_events(time_limit=0.5)
            if not channel.consumer_tags:
                raise AMQPChannelError("the queue was deleted, or the channel closed")
        if self.running:
            log.info(" [*] Finishing %d tasks", len(self.running))
        channel.stop_consuming()
        while self.running:
            channel.connection.process_data_events(time_limit=1)

    def begin(
        self,
        channel: BlockingChannel,
        method: Basic.Deliver,
        properties: BasicProperties,
        body: bytes,
    ) -> None:
        """Have a thread of the pool do a task, and this one finish it."""
        log.info(" [x] Received %s", properties.message_id or body[:40])
        task = self.pool.submit(attempt, body, method.redelivered)
        self.running[task] = channel, method, properties, body
        task.add_done_callback(self.hand_over)

    def hand_over(self, task: Future[bytes]) -> None:
        """Have the connection's thread finish a task. A thread of the pool calls this."""
        with suppress(AMQPError, KeyError):  # the connection is lost, so the task comes again
            self.running[task][0].connection.add_callback_threadsafe(partial(self.finish, task))

    def finish(self, task: Future[bytes]) -> None:
        """Publish the result if the task asks for it, or the task if it failed; acknowledge it."""
        channel, method, properties, body = self.running.pop(task)
        self.pause = 0
        name, error = properties.message_id or body[:40], task.exception()
        publish = partial(self.publish, channel.connection)
        if properties.reply_to and not error:
            answer = BasicProperties(correlation_id=properties.correlation_id)
            try:
                publish(routing_key=properties.reply_to, body=task.result(), properties=answer)
            except UnroutableError:
                log.warning(" [!] Nobody waits for the result any more")
            except REFUSED as refused:
                error = refused
        if error:
            queue = self.next_queue(properties, error)
            try:
                publish(routing_key=queue, body=body, properties=properties)
            except REFUSED as refused:
                log.warning(" [!] Failed %s: %r. Back in 5 s: %s: %r", name, error, queue, refused)
                give_back = partial(channel.basic_nack, delivery_tag=method.delivery_tag)
                channel.connection.call_later(5, give_back)  # at once it would come back at once
                return
            log.error(" [!] Failed %s: %r. Now in %s", name, error, queue, exc_info=error)
        else:
            log.info(" [x] Done %s", name)
        channel.basic_ack(delivery_tag=method.delivery_tag)  # now RabbitMQ has it elsewhere

    def publish(self, connection: pika.BlockingConnection, **message: Any) -> None:  # noqa: ANN401
        """Publish, and wait for the confirm, on a channel that RabbitMQ may close without harm."""
        if not (self.out and self.out.is_open and self.out.connection is connection):
            self.out = connection.channel()
            self.out.confirm_delivery()
        self.out.basic_publish(exchange="", mandatory=True, **message)

    def next_queue(self, properties: BasicProperties, error: BaseException) -> str:
        """Return where a failed task is to wait, and note in its properties how it failed."""
        headers = properties.headers or {}
        tries = 1 + (headers["x-tries"] if isinstance(headers.get("x-tries"), int) else 0)
        delays = () if isinstance(error, Unrecoverable) else RETRY_DELAYS[tries - 1 :]
        # Whoever sends back what was set aside gives it all its tries again.
        text = f"try {tries}: {error!r}"[:500].encode(errors="backslashreplace").decode()
        told = {"x-tries": tries if delays else 0, "x-error": text}
        copies = {"CC", "BCC"}  # where RabbitMQ would send it each time
        properties.headers = {k: v for k, v in {**headers, **told}.items() if k not in copies}
        properties.delivery_mode = pika.DeliveryMode.Persistent.value
        properties.expiration = None  # or RabbitMQ deletes it before anybody has seen it
        properties.user_id = None  # or RabbitMQ refuses it, unless its sender had our login
        return f"{self.queue}.retry.{delays[0]}s" if delays else f"{self.queue}.failed"


# The rest is the command line.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--queue", default="jobs")
    parser.add_argument("--parallel", type=int, default=4, metavar="N")
    arguments = parser.parse_args()
    if not arguments.queue or not 0 < arguments.parallel < 65536:
        parser.error("a queue has a name, and --parallel is 1 at least")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s%(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say, we say in one line
    worker = Worker(arguments.queue, arguments.parallel)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, worker.stop)
    try:  # pika takes localhost if there is no host, and its options may raise anything
        [_] = re.findall(rb"^amqps?://(?:[^/?#]*@)?+[\w.[][!-~]*$", RABBITMQ_URL.encode("ascii"))
        (parameters := pika.URLParameters(RABBITMQ_URL)).host.encode("idna")
        _ = [range(2**31)[option] for option in (parameters.tcp_options or {}).values()]
    except Exception:
        sys.exit(" [!] RABBITMQ_URL is no address. Write amqp://user:password@host:5672/%2F")
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30  # seconds
    try:
        worker.serve(parameters)
    except (*LOST, UnicodeError) as error:
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # at once: sys.exit would wait for other threads


if __name__ == "__main__":
    main()
