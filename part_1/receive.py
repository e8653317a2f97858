# /// script
# requires-python = ">=3.11"
# dependencies = ["pika~=1.4"]
# ///
"""Print every message of the queue "hello", until Ctrl+C.

    python part_1/receive.py

part_1/sender.py, in another terminal, sends one.
"""

import os
import signal
import socket
import ssl
import sys
from argparse import ArgumentParser, RawTextHelpFormatter

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelWrongStateError
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"
# What a connection that fails or is lost may raise.
CONNECTION_ERRORS = (AMQPConnectionError, AMQPConnectorException, socket.gaierror, ssl.SSLError)
QUEUE = "hello"


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Print one message."""
    print(f" [x] Received {body.decode(errors='replace')!r}", flush=True)


def receive() -> None:
    """Pass each message of the queue to on_message, as long as the connection lasts."""
    with pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue=QUEUE)
        channel.basic_consume(queue=QUEUE, on_message_callback=on_message, auto_ack=True)
        print(" [*] Waiting for messages. To exit press CTRL+C", flush=True)
        channel.start_consuming()
        raise ChannelWrongStateError("somebody has deleted the queue")  # else it would not return


def goodbye(*_: object) -> None:
    """End at once, on Ctrl+C or SIGTERM: an exception in the middle of pika's work may get lost."""
    try:
        os.write(1, b" [*] Goodbye\n")
    finally:
        os._exit(0)  # whether anybody reads that or not


def main() -> None:
    """Run from a command line: its arguments, Ctrl+C, and one clear line where it fails."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.parse_args()
    signal.signal(signal.SIGINT, goodbye)
    signal.signal(signal.SIGTERM, goodbye)
    try:  # pika reads options as Python literals, and files that they name
        pika.URLParameters(RABBITMQ_URL).host.encode("idna")
    except (ValueError, TypeError, LookupError, SyntaxError, OSError) as error:
        why = type(error).__name__  # and not the text, which may quote the password
        sys.exit(f" [!] Malformed RABBITMQ_URL ({why}). Write amqp://user:password@host:5672/%2F")
    try:
        receive()
    except BrokenPipeError:  # whoever read what this prints has ended, as in `... | head -1`
        os._exit(0)  # and no last flush, which would fail again
    except CONNECTION_ERRORS as error:
        sys.exit(f" [!] No connection: {error!r}. Is RabbitMQ up? See RABBITMQ_URL and its log.")
    except (AMQPError, UnicodeEncodeError) as error:
        sys.exit(f" [!] Refused: {error!r}. Fix what that names, then start again.")


if __name__ == "__main__":
    main()
