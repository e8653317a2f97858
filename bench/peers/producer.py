"""Send persistent tasks to "task_queue" from one open channel, one after the other, until killed.

python bench/peers/producer.py [confirmed]
"""

import os
import sys

import pika

with pika.BlockingConnection(pika.URLParameters(os.environ["RABBITMQ_URL"])) as connection:
    channel = connection.channel()
    if "confirmed" in sys.argv:
        channel.confirm_delivery()
    print(" [*] Sending", flush=True)
    while True:
        channel.basic_publish(
            exchange="",
            routing_key="task_queue",
            body=b"task",
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
        )
