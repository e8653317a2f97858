# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Print the log messages of some severities. part_4/emit_log_direct.py sends them.

Run it: python part_4/receive_logs_direct.py info warning error
or:     python part_4/receive_logs_direct.py error > errors.log
"""

import os
import re
import signal
import sys
from argparse import ArgumentParser, RawTextHelpFormatter

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
EXCHANGE = "direct_logs"


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Print one message."""
    print(f" [x] {method.routing_key}:{body.decode(errors='replace')!r}")


def receive(parameters: pika.URLParameters, severities: list[str]) -> None:
    """Have pika call on_message with each message, for as long as the connection lasts."""
    with pika.BlockingConnection(parameters) as connection, connection.channel() as channel:
        channel.exchange_declare(exchange=EXCHANGE, exchange_type="direct")
        # A queue of our own, named by RabbitMQ, which deletes it when this connection ends.
        queue = channel.queue_declare(queue="", exclusive=True).method.queue
        for severity in severities:
            channel.queue_bind(queue=queue, exchange=EXCHANGE, routing_key=severity)
        channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
        print(" [*] Waiting for logs. To exit press CTRL+C")
        channel.start_consuming()
        raise pika.exceptions.ConsumerCancelled  # we only get here if somebody deletes the queue


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("severities", nargs="+", help="such as info, warning or error")
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
        receive(parameters, arguments.severities)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # an error of yours, not of the network
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # sys.exit would wait for other threads, and for the output


if __name__ == "__main__":
    main()
