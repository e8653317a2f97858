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
from types import SimpleNamespace
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
now = SimpleNamespace(connected=False, stopping=False)  # what `stop` has to know, and to tell
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


def attempt(body: bytes) -> bytes:
    """Return the result of the task in a message's body. Both are JSON."""
    try:
        task = json.loads(body)
    except ValueError as error:
        raise Unrecoverable(f"the body is not JSON: {error}") from None
    return json.dumps(work(task)).encode()


Message = tuple[int, BasicProperties, bytes]  # its delivery tag, its properties, its body


class Worker:
    """Does the tasks of a queue over one channel, in the thread that owns its connection."""

    def __init__(self, channel: BlockingChannel, queue: str, pool: ThreadPoolExecutor) -> None:
        self.channel, self.queue, self.pool = channel, queue, pool
        self.running: set[Future[bytes]] = set()
        channel.queue_declare(queue=queue, durable=True)
        channel.queue_declare(queue=f"{queue}.failed", durable=True)
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
        for delay in RETRY_DELAYS:  # a queue each, as only the first message of a queue expires
            name, arguments = f"{queue}.retry.{delay}s", {"x-message-ttl": 1000 * delay, **back}
            channel.queue_declare(queue=name, durable=True, arguments=arguments)
        channel.confirm_delivery()
        channel.basic_consume(queue=queue, on_message_callback=self.begin)

    def run(self) -> None:
        """Do tasks until we are told to stop, and finish those that have begun."""
        log.info(" [*] Waiting for tasks in %s. To exit press CTRL+C", self.queue)
        self.look()
        self.channel.start_consuming()
        if not now.stopping:
            raise exceptions.ChannelWrongStateError("somebody has deleted the queue")
        log.info(" [*] Finishing %d tasks", len(self.running))
        while self.running:
            self.channel.connection.process_data_events(time_limit=1)

    def look(self) -> None:
        """Look twice a second whether we have been told to stop."""
        then = self.channel.stop_consuming if now.stopping else self.look
        self.channel.connection.call_later(0.5, then)

    def begin(
        self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        """Have a thread of the pool do a task, and this one finish it."""
        message = (method.delivery_tag, properties, body)
        if method.redelivered:  # its worker was lost, perhaps because of it: so that try counts
            self.fail(message, ConnectionError("the worker that had it was lost"))
            return
        log.info(" [x] Received %s", properties.message_id or body[:40])
        task = self.pool.submit(attempt, body)
        self.running.add(task)

        def hand_over(_: Future[bytes]) -> None:  # in the task's thread
            with suppress(exceptions.ConnectionWrongStateError):  # lost, so the task comes again
                finish = partial(self.finish, message, task)
                self.channel.connection.add_callback_threadsafe(finish)

        task.add_done_callback(hand_over)

    def finish(self, message: Message, task: Future[bytes]) -> None:
        """Publish the result where the task asks for it, then acknowledge the task."""
        tag, properties, body = message
        self.running.discard(task)
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
            self.channel.basic_ack(delivery_tag=tag)
        else:
            self.fail(message, error)

    def fail(self, message: Message, error: BaseException) -> None:
        """Have a task tried again later; or set it aside, if no try is left or would help."""
        tag, properties, body = message
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
        self.channel.basic_ack(delivery_tag=tag)  # not before the other queue has it

    def publish(self, queue: str, body: bytes, properties: BasicProperties) -> None:
        """Publish to a queue, and return when RabbitMQ has confirmed it."""
        self.channel.basic_publish(
            exchange="", routing_key=queue, body=body, properties=properties, mandatory=True
        )


def serve(parameters: pika.URLParameters, queue: str, parallel: int) -> None:
    """Work, and connect again after a growing pause whenever the connection is lost."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    pool, pause, worker = ThreadPoolExecutor(parallel), 0, None
    while not now.stopping:
        try:
            with pika.BlockingConnection(parameters) as connection:
                channel = connection.channel()
                channel.basic_qos(prefetch_count=parallel)  # so that no task waits for a thread
                worker = Worker(channel, queue, pool)
                now.connected, since = True, time.monotonic()
                worker.run()
        except LOST as error:
            if now.stopping or not worker:
                raise  # the first connection of all: the address may be wrong
            now.connected = False
            for task in worker.running:
                task.cancel()  # unless it has begun, since RabbitMQ gives it out again
            pause = 1 if time.monotonic() > since + 60 else min(2 * pause or 1, 30)
            log.warning(" [!] Connection lost: %r. Trying again in %d s", error, pause)
            time.sleep(pause)


def stop(number: int, _: object) -> None:
    """Finish the tasks that have begun. If not connected, or told twice, end at once."""
    if now.stopping or not now.connected:
        os._exit(128 + number if now.stopping else 0)
    now.stopping = True


# The rest is the command line.
def main() -> None:
    """Run from a terminal: end at once when told to, and say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--queue", default="jobs")
    parser.add_argument("--parallel", type=int, default=4, metavar="N")
    arguments = parser.parse_args()
    if not arguments.queue or not 0 < arguments.parallel < 65536:
        parser.error("a queue has a name, and --parallel is 1 at least")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
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
        serve(parameters, arguments.queue, arguments.parallel)
    except (*LOST, UnicodeError) as error:
        if getattr(error, "filename", None):  # a file of yours, not the network or the output
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # sys.exit would wait for the tasks that are lost


if __name__ == "__main__":
    main()
