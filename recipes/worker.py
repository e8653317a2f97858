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
import socket
import sys
import time
import traceback
from argparse import ArgumentParser, RawTextHelpFormatter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pika
from pika import exceptions
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.spec import Basic, BasicProperties
from pika.tcp_socket_opts import set_sock_opts

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
RETRY_DELAYS = (5, 30, 180)  # seconds until the second, the third, and the fourth and last try

log = logging.getLogger("worker")
# What pika raises if it cannot connect, or has lost the connection or the channel.
LOST = (exceptions.AMQPError, AMQPConnectorException, OSError)


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
        self.running: set[Future[bytes]] = set()
        self.connected = self.stopping = False
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
                for task in self.running:
                    task.cancel()  # unless it has begun, since RabbitMQ gives it out again
                self.running.clear()
                self.pause = min(2 * self.pause or 1, 30)
                log.warning(" [!] Connection lost: %r. Trying again in %d s", error, self.pause)
                time.sleep(self.pause)

    def consume(self, channel: BlockingChannel) -> None:
        """Do tasks until we are told to stop, and finish those that have begun."""
        channel.queue_declare(queue=self.queue, durable=True)
        channel.queue_declare(queue=f"{self.queue}.failed", durable=True)
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": self.queue}
        for delay in RETRY_DELAYS:  # a queue each, as only the first message of a queue expires
            name, arguments = (
                f"{self.queue}.retry.{delay}s",
                {"x-message-ttl": 1000 * delay, **back},
            )
            channel.queue_declare(queue=name, durable=True, arguments=arguments)
        channel.confirm_delivery()
        channel.basic_qos(prefetch_count=self.parallel)  # so that no task waits for a thread
        channel.basic_consume(queue=self.queue, on_message_callback=self.begin)
        self.channel, self.connected = channel, True
        log.info(" [*] Waiting for tasks in %s. To exit press CTRL+C", self.queue)
        while not self.stopping:
            channel.connection.process_data_events(time_limit=0.5)
            if not channel.consumer_tags:
                why = "the queue was deleted, or RabbitMQ closed the channel"
                raise exceptions.ChannelWrongStateError(why)
        if self.running:
            log.info(" [*] Finishing %d tasks", len(self.running))
        channel.stop_consuming()
        while self.running:
            channel.connection.process_data_events(time_limit=1)

    def begin(
        self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        """Have a thread of the pool do a task, and this one finish it."""
        log.info(" [x] Received %s", properties.message_id or body[:40])
        task = self.pool.submit(attempt, body, method.redelivered)
        self.running.add(task)
        connection = self.channel.connection
        finish = partial(self.finish, method.delivery_tag, properties, body, task)

        def hand_over(_: Future[bytes]) -> None:  # in the task's thread
            with suppress(exceptions.ConnectionWrongStateError):  # lost, so the task comes again
                connection.add_callback_threadsafe(finish)

        task.add_done_callback(hand_over)

    def finish(
        self, tag: int, properties: BasicProperties, body: bytes, task: Future[bytes]
    ) -> None:
        """Send the result where the task asks for it, or the task where it is to wait."""
        self.running.discard(task)
        self.pause = 0
        error = task.exception()
        if error is None and properties.reply_to:
            answer = BasicProperties(correlation_id=properties.correlation_id)
            try:
                self.publish(properties.reply_to, task.result(), answer)
            except exceptions.UnroutableError:
                log.warning(" [!] Nobody waits for the result any more")
            except exceptions.NackError as full:
                error = full
        if error is None:
            log.info(" [x] Done %s", properties.message_id or body[:40])
        else:
            self.fail(properties, body, error)
        self.channel.basic_ack(delivery_tag=tag)  # not before RabbitMQ has the task elsewhere

    def fail(self, properties: BasicProperties, body: bytes, error: BaseException) -> None:
        """Have a task tried again later; or set it aside, if no try is left or would help."""
        headers = properties.headers or {}
        tries = headers.get("x-tries")
        tries = tries + 1 if isinstance(tries, int) else 1
        delays = () if isinstance(error, Unrecoverable) else RETRY_DELAYS[tries - 1 :]
        queue = f"{self.queue}.retry.{delays[0]}s" if delays else f"{self.queue}.failed"
        text = "".join(traceback.format_exception_only(error)).strip()[:500]
        text = text.encode(errors="backslashreplace").decode()  # a header is UTF-8
        name = properties.message_id or body[:40]
        log.error(" [!] Failed %s: %s. Now in %s", name, text, queue, exc_info=error)
        # Whoever sends back what was set aside gives it all its tries again.
        told = {"x-tries": tries if delays else 0, "x-error": f"try {tries}: {text}"}
        properties.headers = {**headers, **told}
        properties.delivery_mode = pika.DeliveryMode.Persistent.value
        properties.expiration = None  # or RabbitMQ deletes it before anybody has seen it
        properties.user_id = None  # or RabbitMQ refuses it, unless its sender had our login
        self.publish(queue, body, properties)

    def publish(self, queue: str, body: bytes, properties: BasicProperties) -> None:
        """Publish to a queue, and return when RabbitMQ has confirmed it."""
        self.channel.basic_publish(
            exchange="", routing_key=queue, body=body, properties=properties, mandatory=True
        )


# The rest is the command line: the same in all three recipes, but for arguments and one call.
def main() -> None:
    """Run from a terminal: end at once when told to, and say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--queue", default="jobs")
    parser.add_argument("--parallel", type=int, default=4, metavar="N")
    arguments = parser.parse_args()
    if not arguments.queue or not 0 < arguments.parallel < 65536:
        parser.error("a queue has a name, and --parallel is 1 at least")
    worker = Worker(arguments.queue, arguments.parallel)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, worker.stop)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s%(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would log, we log once
    try:  # pika takes localhost if there is no host, and its options may raise anything
        [_] = re.findall(rb"^amqps?://(?:[^/?#]*@)?+[\w.[][!-~]*$", RABBITMQ_URL.encode("ascii"))
        parameters = pika.URLParameters(RABBITMQ_URL)
        parameters.host.encode("idna")
        with socket.socket() as trial:
            set_sock_opts(parameters.tcp_options, trial)
    except Exception:
        sys.exit(" [!] RABBITMQ_URL is no address. Write amqp://user:password@host:5672/%2F")
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30  # seconds
    try:
        worker.serve(parameters)
    except (*LOST, UnicodeError) as error:
        if getattr(error, "filename", None):  # a file of yours, not the network or the output
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # sys.exit would wait for the tasks that are lost


if __name__ == "__main__":
    main()
