# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Send one log message with a severity, through the exchange "direct_logs".

    python part_4/emit_log_direct.py error Disk full

part_4/receive_logs_direct.py listens. Without arguments it is "Hello World!", as "info".
"""

import os
import signal
import socket
import ssl
import sys
from argparse import ArgumentParser, RawTextHelpFormatter

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
# What a connection that fails or is lost may raise.
CONNECTION_ERRORS = (AMQPConnectionError, AMQPConnectorException, socket.gaierror, ssl.SSLError)
EXCHANGE = "direct_logs"


def emit(severity: str, message: str) -> None:
    """Send the message to the exchange with the severity as its routing key."""
    parameters = pika.URLParameters(RABBITMQ_URL)
    # RabbitMQ blocks publishers while it is short of memory or disk: wait, not for ever.
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or 30  # seconds
    with pika.BlockingConnection(parameters) as connection, connection.channel() as channel:
        channel.exchange_declare(exchange=EXCHANGE, exchange_type="direct")
        channel.basic_publish(exchange=EXCHANGE, routing_key=severity, body=message.encode())
    # Both were closed in order: RabbitMQ has read all that was sent, and refused none of it.
    print(f" [x] Sent {severity!r}:{message!r}", flush=True)


def goodbye(*_: object) -> None:
    """End at once, on Ctrl+C or SIGTERM: an exception in the middle of pika's work may get lost."""
    try:
        os.write(1, b" [*] Goodbye\n")
    finally:
        os._exit(0)  # whether anybody reads that or not


def main() -> None:
    """Run from a command line: its arguments, Ctrl+C, and one clear line where it fails."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("severity", nargs="?", default="info", help="such as info, warning, error")
    parser.add_argument("words", nargs="*", default=["Hello World!"], help="the message")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, goodbye)
    signal.signal(signal.SIGTERM, goodbye)
    try:  # pika reads options as Python literals, and files that they name
        pika.URLParameters(RABBITMQ_URL).host.encode("idna")
    except (ValueError, TypeError, LookupError, SyntaxError, OSError) as error:
        why = type(error).__name__  # and not the text, which may quote the password
        sys.exit(f" [!] Malformed RABBITMQ_URL ({why}). Write amqp://user:password@host:5672/%2F")
    try:
        emit(arguments.severity, " ".join(arguments.words))
    except BrokenPipeError:  # whoever read what this prints has ended, as in `... | head -1`
        os._exit(0)  # and no last flush, which would fail again
    except CONNECTION_ERRORS as error:
        sys.exit(f" [!] No connection: {error!r}. Is RabbitMQ up? See RABBITMQ_URL and its log.")
    except (AMQPError, UnicodeEncodeError) as error:
        sys.exit(f" [!] Refused: {error!r}. Fix what that names, then start again.")


if __name__ == "__main__":
    main()
