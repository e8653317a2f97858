# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Do the tasks that part_2/new_task.py sends, one at a time. Start several to share them.

Run it: python part_2/worker.py
"""

import os
import re
import signal
import sys
import time
from argparse import ArgumentParser, Namespace, RawTextHelpFormatter
from concurrent.futures import ThreadPoolExecutor, wait

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
QUEUE = "task_queue"

thread = ThreadPoolExecutor(max_workers=1)  # for the work; the main thread has the connection
now = Namespace(ready=None, busy=False, stopping=False)  # ready: None until it once was


def work(task: bytes) -> None:
    """Stand in for real work: take a second for each dot. Never use the connection in here."""
    time.sleep(task.count(b"."))


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Do one task, and acknowledge it once it is done."""
    now.busy = True
    if now.stopping:
        return  # not acknowledged, so RabbitMQ gives it to another worker
    print(f" [x] Received {body.decode(errors='replace')!r}")
    task = thread.submit(work, body)
    while not wait([task], timeout=1).done:
        channel.connection.process_data_events()  # sends heartbeats: busy, but alive
    if error := task.exception():
        raise RuntimeError("the task failed") from error
    channel.basic_ack(delivery_tag=method.delivery_tag)  # if it has a result, publish that first
    now.busy = False
    print(" [x] Done")


def serve(parameters: pika.URLParameters) -> None:
    """Have pika call on_message with each task; if the connection is lost, make another."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    pause = 0.5  # seconds; doubled before it is used
    while not now.stopping:
        began = time.monotonic()
        try:
            with pika.BlockingConnection(parameters) as connection, connection.channel() as channel:
                channel.queue_declare(queue=QUEUE, durable=True)
                channel.basic_qos(prefetch_count=1)  # no next task before this one is acknowledged
                channel.basic_consume(queue=QUEUE, on_message_callback=on_message)
                now.ready = True
                print(" [*] Waiting for tasks. To exit press CTRL+C")

                def look() -> None:
                    if now.stopping:
                        channel.stop_consuming()
                    connection.call_later(1, look)  # look again in a second

                look()
                channel.start_consuming()
                if not now.stopping:
                    raise pika.exceptions.AMQPChannelError("the queue was deleted")
        except (pika.exceptions.AMQPError, AMQPConnectorException, OSError) as error:
            if now.stopping or now.ready is None or (now.ready and isinstance(error, OSError)):
                raise  # it never worked (a wrong login?), or the error is not the connection's
            now.ready = now.busy = False
            pause = 1 if time.monotonic() > began + 60 else min(2 * pause, 10)
            print(f" [!] Connection lost: {error!r}. Trying again in {pause:g} s", file=sys.stderr)
            thread.submit(time.sleep, pause).result()  # its turn comes when the old work has ended


def stop(number: int, _: object) -> None:
    """Finish the task at hand, then close. If told twice, or not connected, end at once."""
    if now.stopping or not now.ready:
        os._exit(128 + number if now.stopping else 0)
    now.stopping = True
    if now.busy:
        os.write(2, b" [*] Finishing this task first. To end at once press CTRL+C again\n")


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:  # pika would take localhost for a missing host, and a wrong option may raise anything
        [_] = re.findall(rb"^amqps?://(?:[^/?#]*@)?+[\w.[][!-~]*$", RABBITMQ_URL.encode("ascii"))
        (parameters := pika.URLParameters(RABBITMQ_URL)).host.encode("idna")
        _ = [range(2**31)[option] for option in (parameters.tcp_options or {}).values()]
    except Exception:
        sys.exit(" [!] RABBITMQ_URL is no address. Write amqp://user:password@host:5672/%2F")
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30  # seconds
    try:
        serve(parameters)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # an error of yours, not of the network
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # sys.exit would wait for other threads, and for the output


if __name__ == "__main__":
    main()
