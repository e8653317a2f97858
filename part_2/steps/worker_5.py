"""A worker, step 5: a task may take long. But a lost connection ends the worker."""

import os
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

RABBITMQ_URL = os.environ.get("RABBITMQ_URL") or "amqp://guest:guest@localhost:5672/%2F"

thread = ThreadPoolExecutor(max_workers=1)  # for the work


def work(task: bytes) -> None:
    """Take a second for each dot."""
    time.sleep(task.count(b"."))


def on_message(
    channel: BlockingChannel, method: Basic.Deliver, properties: BasicProperties, body: bytes
) -> None:
    """Do one task."""
    print(f" [x] Received {body.decode()!r}", flush=True)
    task = thread.submit(work, body)
    while not wait([task], timeout=1).done:
        channel.connection.process_data_events()  # sends heartbeats: busy, but alive
    if error := task.exception():
        raise RuntimeError("the task failed") from error
    channel.basic_ack(delivery_tag=method.delivery_tag)
    print(" [x] Done", flush=True)


def consume() -> None:
    """Wait for tasks, and call on_message with each."""
    channel = pika.BlockingConnection(pika.URLParameters(RABBITMQ_URL)).channel()
    channel.queue_declare(queue="task_queue", durable=True)
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="task_queue", on_message_callback=on_message)
    print(" [*] Waiting for tasks. To exit press CTRL+C", flush=True)
    channel.start_consuming()


consume()
