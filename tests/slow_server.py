"""part_6/rpc_server.py, which takes some seconds for each request.

Run it: python -m tests.slow_server SECONDS
"""

import sys
import time

from part_6 import rpc_server

SECONDS = float(sys.argv.pop())
fib = rpc_server.fib


def slow_fib(n: int) -> int:
    """Return the n-th Fibonacci number, but not soon."""
    time.sleep(SECONDS)
    return fib(n)


rpc_server.fib = slow_fib
rpc_server.main()
