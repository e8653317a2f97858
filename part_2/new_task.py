# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Send one task, for part_2/worker.py to do: each dot in it will be a second of work.

Run it: python part_2/new_task.py A task of three seconds...
"""

import os
import re
import signal
import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from concurrent.futures import ThreadPoolExecutor

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
QUEUE = "task_queue"


def send(parameters: pika.URLParameters, task: str) -> None:
    """Return once RabbitMQ has confirmed the task. After an error it may be sent or not."""
    thread = ThreadPoolExecutor(max_workers=1)  # it owns the connection, and we can give up
    connection = thread.submit(pika.BlockingConnection, parameters).result()

    def publish() -> None:
        with connection, connection.channel() as channel:
            channel.confirm_delivery()  # from here on basic_publish waits for RabbitMQ's confirm
            channel.queue_declare(queue=QUEUE, durable=True)  # durable: it survives a restart,
            channel.basic_publish(
                exchange="",
                routing_key=QUEUE,
                body=task.encode(),
                # and so does a persistent message in it.
                properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
                mandatory=True,  # an error, rather than a task lost, should the queue be gone
            )

    try:  # pika itself waits for a confirm for ever
        limit = max(30, 1 + (parameters.blocked_connection_timeout or 0))  # seconds
        thread.submit(publish).result(timeout=limit)
    except TimeoutError:
        raise TimeoutError("no confirm in time: the task may have been sent or not") from None
    except pika.exceptions.NackError:
        raise pika.exceptions.AMQPChannelError("RabbitMQ rejected it: is the queue full?") from None
    print(f" [x] Sent {task!r}")


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", default=["Hello World!"], help="the task")
    arguments = parser.parse_args()
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
        send(parameters, " ".join(arguments.words))
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # an error of yours, not of the network
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # sys.exit would wait for other threads, and for the output


if __name__ == "__main__":
    main()
