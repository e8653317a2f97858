# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Send a log message to everybody who listens now, such as part_3/receive_logs.py.

Run it: python part_3/emit_log.py Disk almost full
"""

import os
import re
import signal
import sys
from argparse import ArgumentParser, RawTextHelpFormatter

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
EXCHANGE = "logs"


def emit(parameters: pika.URLParameters, message: str) -> None:
    """Send the message to the exchange, whether anybody listens or not."""
    with pika.BlockingConnection(parameters) as connection, connection.channel() as channel:
        channel.exchange_declare(exchange=EXCHANGE, exchange_type="fanout")
        channel.basic_publish(exchange=EXCHANGE, routing_key="", body=message.encode())
    # Closing waits for RabbitMQ's answer. By then RabbitMQ has read the message, too.
    print(f" [x] Sent {message!r}")


# The rest is the command line: the same in all twelve scripts, but for arguments and one call.
def main() -> None:
    """Run from a terminal: read the arguments and the address, say in one line what went wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", default=["Hello World!"], help="the message")
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
        emit(parameters, " ".join(arguments.words))
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        if getattr(error, "filename", None):  # an error of yours, not of the network
            raise
        print(f" [!] {error!r}", file=sys.stderr)
        os._exit(1)  # sys.exit would wait for other threads, and for the output


if __name__ == "__main__":
    main()
