"""The plainest worker: no heartbeat during a task, and no second connection.

python bench/plain/worker.py PREFETCH_COUNT|auto_ack
"""

import os
import sys
import time

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

auto_ack = sys.argv[1] == "auto_ack"


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Do one task."""
    print(f" [x] Received {body.decode()!r}", flush=True)
    time.sleep(body.count(b"."))
    print(" [x] Done", flush=True)
    if not auto_ack:
        channel.basic_ack(delivery_tag=method.delivery_tag)


with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True)
    if not auto_ack:
        channel.basic_qos(prefetch_count=int(sys.argv[1]))
    channel.basic_consume(queue="task_queue", on_message_callback=on_message, auto_ack=auto_ack)
    print(" [*] Waiting for tasks", flush=True)
    channel.start_consuming()
