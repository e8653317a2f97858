"""Send persistent tasks to "task_queue" by the publisher of the recipes, until killed.

python -m bench.peers.recipe_producer
"""

import os

import pika

from recipes.publisher import Publisher

with Publisher(pika.URLParameters(os.environ["RABBITMQ_URL"]), "task_queue") as publisher:
    while True:
        publisher.publish(b"task")
