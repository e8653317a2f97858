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
import signal
import sys
import time
import traceback
from argparse import ArgumentParser, RawTextHelpFormatter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pika
from pika import exceptions
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
CONNECTION_ERRORS = (exceptions.AMQPError, AMQPConnectorException, OSError)
RETRY_DELAYS = (5, 30, 180)  # seconds until the second, the third, and the fourth and last try
log = logging.getLogger("worker")
stopping: list[int] = []  # the signal that told us to stop


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


class Worker:
    """Does the tasks of a queue over one connection, in the thread that owns the connection."""

    def __init__(
        self,
        connection: pika.BlockingConnection,
        queue: str,
        parallel: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.connection, self.queue, self.pool = connection, queue, pool
        self.running: set[Future[bytes]] = set()
        self.channel = connection.channel()
        self.channel.queue_declare(queue=queue, durable=True)
        self.channel.queue_declare(queue=f"{queue}.failed", durable=True)
        back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
        for delay in RETRY_DELAYS:  # a queue each, as only the first message of a queue expires
            name, arguments = f"{queue}.retry.{delay}s", {"x-message-ttl": 1000 * delay, **back}
            self.channel.queue_declare(queue=name, durable=True, arguments=arguments)
        self.channel.confirm_delivery()
        self.channel.basic_qos(prefetch_count=parallel)  # so that no task waits for a thread
        self.channel.basic_consume(queue=queue, on_message_callback=self.begin)

    def run(self) -> None:
        """Do tasks until we are told to stop, and finish those that have begun."""
        log.info(" [*] Waiting for tasks in %s. To exit press CTRL+C", self.queue)
        self.look()
        self.channel.start_consuming()
        if not stopping:
            raise exceptions.ChannelWrongStateError("somebody has deleted the queue")
        log.info(" [*] Finishing %d tasks", len(self.running))
        while self.running:
            self.connection.process_data_events(time_limit=1)

    def look(self) -> None:
        """Look twice a second whether we have been told to stop."""
        then = self.channel.stop_consuming if stopping else self.look
        self.connection.call_later(0.5, then)

    def begin(
        self, _: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        """Have a thread of the pool do a task, and have it finished in this one."""
        message = (method.delivery_tag, properties, body)
        if method.redelivered:  # its worker was lost, perhaps because of it: so that try counts
            self.fail(*message, ConnectionError("the worker that had it was lost"))
            return
        log.info(" [x] Received %s", properties.message_id or body[:40])
        task = self.pool.submit(attempt, body)
        self.running.add(task)

        def hand_over(_: Future[bytes]) -> None:  # in the task's thread
            with suppress(exceptions.ConnectionWrongStateError):  # lost, so the task comes again
                self.connection.add_callback_threadsafe(lambda: self.finish(*message, task))

        task.add_done_callback(hand_over)

    def finish(
        self, tag: int, properties: BasicProperties, body: bytes, task: Future[bytes]
    ) -> None:
        """Publish the result where the task asks for it, then acknowledge the task."""
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
        if error is not None:
            self.fail(tag, properties, body, error)
            return
        log.info(" [x] Done %s", properties.message_id or body[:40])
        self.channel.basic_ack(delivery_tag=tag)

    def fail(
        self, tag: int, properties: BasicProperties, body: bytes, error: BaseException
    ) -> None:
        """Have a task tried again later; or set it aside, if no try is left or would help."""
        headers = properties.headers or {}
        tries = headers.get("x-tries")
        tries = tries + 1 if isinstance(tries, int) else 1
        # A task that was sent back after it was set aside has all its tries again.
        delays = () if isinstance(error, Unrecoverable) else RETRY_DELAYS[tries - 1 :]
        queue = f"{self.queue}.retry.{delays[0]}s" if delays else f"{self.queue}.failed"
        text = "".join(traceback.format_exception_only(error)).strip()[:500]
        text = text.encode(errors="backslashreplace").decode()  # headers are UTF-8
        log.error(
            " [!] Failed %s: %s. Now in %s",
            properties.message_id or body[:40],
            text,
            queue,
            exc_info=error,
        )
        properties.headers = {
            **headers,
            "x-tries": tries if delays else 0,
            "x-error": f"try {tries}: {text}",
        }
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
    """Work until told to stop; connect again, after a growing pause, if the connection is lost."""
    pool, pause, worker = ThreadPoolExecutor(parallel), 0.5, None
    while not stopping:
        began = time.monotonic()
        try:
            with pika.BlockingConnection(parameters) as connection:
                worker = Worker(connection, queue, parallel, pool)
                worker.run()
        except CONNECTION_ERRORS as error:
            if not worker:
                raise  # never connected: a wrong address or password is said at once
            for task in worker.running:
                task.cancel()  # unless it has begun, since RabbitMQ gives it out again
            pause = 1 if time.monotonic() - began > 60 else min(2 * pause, 30)
            log.warning(" [!] Connection lost: %r. Trying again in %d s", error, pause)
            until = time.monotonic() + pause
            while not stopping and time.monotonic() < until:
                time.sleep(0.2)


def stop(number: int, _: object) -> None:
    """Have the worker finish what it has begun. The same signal again ends it at once."""
    stopping.append(number)
    signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """Run from a command line: its arguments, Ctrl+C, and one clear line where it fails."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--queue", default="jobs")
    parser.add_argument("--parallel", type=int, default=4, metavar="N")
    arguments = parser.parse_args()
    if not arguments.queue or not 0 < arguments.parallel < 65536:
        parser.error("a queue has a name, and --parallel is 1 at least")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s%(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would log, we log once
    try:
        parameters = pika.URLParameters(RABBITMQ_URL)
        parameters.host.encode("idna")
    except (ValueError, TypeError, LookupError, SyntaxError, OSError) as error:
        why = type(error).__name__  # and not the text, which may quote the password
        sys.exit(f" [!] Malformed RABBITMQ_URL ({why}). Write amqp://user:password@host:5672/%2F")
    # RabbitMQ reads nothing from a publisher while it is short of memory or disk.
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        serve(parameters, arguments.queue, arguments.parallel)
    except (*CONNECTION_ERRORS, UnicodeError) as error:
        sys.exit(f" [!] No connection: {error!r}. Is RabbitMQ up? See RABBITMQ_URL and its log.")


if __name__ == "__main__":
    main()
