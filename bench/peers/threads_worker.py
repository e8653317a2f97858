"""A worker after pika's own recipe for long tasks, its examples/basic_consumer_threaded.py.

python bench/peers/threads_worker.py

Each task gets a thread, which has the connection's own thread acknowledge it.
"""

import functools
import os
import threading
import time

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties


def acknowledge(channel: BlockingChannel, delivery_tag: int) -> None:
    """Acknowledge a task, in the connection's own thread."""
    if channel.is_open:
        channel.basic_ack(delivery_tag=delivery_tag)


def work(channel: BlockingChannel, delivery_tag: int, body: bytes) -> None:
    """Do one task, in a thread of its own."""
    print(f" [x] Received {body.decode()!r}", flush=True)
    time.sleep(body.count(b"."))
    print(" [x] Done", flush=True)
    done = functools.partial(acknowledge, channel, delivery_tag)
    channel.connection.add_callback_threadsafe(done)


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Start a thread for one task."""
    thread = threading.Thread(target=work, args=(channel, method.delivery_tag, body))
    thread.start()
    threads.append(thread)


threads: list[threading.Thread] = []
with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="task_queue", on_message_callback=on_message)
    print(" [*] Waiting for tasks", flush=True)
    channel.start_consuming()
