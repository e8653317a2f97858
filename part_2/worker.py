# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Do the tasks that part_2/new_task.py sends, one at a time. Start several to share them.

Run it: python part_2/worker.py
"""

import contextlib
import os
import re
import signal
import socket
import ssl
import sys
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelWrongStateError
from pika.spec import Basic, BasicProperties
from pika.tcp_socket_opts import set_sock_opts

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
QUEUE = "task_queue"

thread = ThreadPoolExecutor(max_workers=1)  # for the work; the main thread has the connection
now = SimpleNamespace(connected=False, served=False, stopping=False, working=False)
# What pika raises if it cannot connect, or if the connection or the channel is lost.
LOST = (AMQPError, AMQPConnectorException, ConnectionResetError, socket.gaierror, ssl.SSLError)


def work(task: bytes) -> None:
    """Stand in for real work: take a second for each dot."""
    time.sleep(task.count(b"."))


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Do one task, and acknowledge it once it is done."""
    if now.stopping:
        return  # not acknowledged, so RabbitMQ gives it to another worker
    now.working = True
    print(f" [x] Received {body.decode(errors='replace')!r}")
    task = thread.submit(work, body)
    while True:
        try:
            error = task.exception(timeout=1)
            break
        except TimeoutError:
            channel.connection.process_data_events()  # sends heartbeats: busy, but alive
    if error:
        raise RuntimeError("the task failed") from error
    # If your work has a result to send on, publish task.result() here, and never in `work`.
    print(" [x] Done")
    channel.basic_ack(delivery_tag=method.delivery_tag)
    now.working = False


def consume(connection: pika.BlockingConnection) -> None:
    """Have pika call on_message with each task, until we are told to stop."""
    channel = connection.channel()
    channel.queue_declare(queue=QUEUE, durable=True)
    channel.basic_qos(prefetch_count=1)  # no next task before this one is acknowledged
    channel.basic_consume(queue=QUEUE, on_message_callback=on_message)
    print(" [*] Waiting for tasks. To exit press CTRL+C")
    now.served = True
    while not now.stopping:
        connection.process_data_events(time_limit=1)
        if not channel.consumer_tags:
            raise ChannelWrongStateError("the queue was deleted, or the channel closed")


def serve(parameters: pika.URLParameters) -> None:
    """Consume, and connect again after a growing pause whenever the connection is lost."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    pause = 1
    while not now.stopping:
        began = time.monotonic()
        try:
            with pika.BlockingConnection(parameters) as connection:
                now.connected = True
                consume(connection)
        except LOST as error:
            now.connected = now.working = False
            if now.stopping or not now.served:
                raise  # it never worked: the address may be wrong, or the login
            pause = 1 if time.monotonic() > began + 60 else pause
            print(f" [!] Connection lost: {error!r}. Trying again in {pause} s", file=sys.stderr)
            thread.submit(time.sleep, pause).result()  # behind the work, if it still runs
            pause = min(2 * pause, 10)


def stop(number: int, _: object) -> None:
    """Finish the task at hand, then close. If not connected, or told twice, end at once."""
    if now.stopping or not now.connected:
        os._exit(128 + number if now.stopping else 0)
    now.stopping = True
    with contextlib.suppress(OSError):
        if now.working:
            os.write(1, b" [*] Finishing this task first. To end at once press CTRL+C again\n")


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: end at once when told to, and say in one line what went wrong."""
    ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
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
        serve(parameters)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # a file of yours, not the network or the output
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # at once: sys.exit would wait for other threads


if __name__ == "__main__":
    main()
