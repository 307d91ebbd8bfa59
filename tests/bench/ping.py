"""Round trips over the real encrypted channel: python tests/bench/ping.py

With `--rtt-ms 0` they pass the proxy of `link.py`: the difference is what that costs.
"""

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parties.agreement.contract import Roles
from tests.bench.link import add_options, chosen
from tests.bench.mesh import Mesh, finish, join

SIZES = {64: 2000, 4096: 1000, 65536: 300, 1 << 20: 100}


def worker() -> None:
    with join() as session:
        result = {}
        if session.is_evaluator:
            peer = next(name for name in session.roles.evaluators if name != session.me)
            first = session.me == session.roles.evaluators[0]
            for size, count in SIZES.items():
                payload = bytes(size)
                times = []
                cpu = time.process_time()
                for _ in range(count):
                    start = time.perf_counter()
                    if first:
                        session.channel.send(peer, b"ping", payload)
                    session.channel.receive(peer, size)
                    if not first:
                        session.channel.send(peer, b"pong", payload)
                    times.append(time.perf_counter() - start)
                cpu = (time.process_time() - cpu) / count
                result[str(size)] = [statistics.median(times) * 1e6, cpu * 1e6]
        finish(result)


def main() -> None:
    parser = argparse.ArgumentParser(description="round trips over the encrypted channel")
    add_options(parser)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    roles = Roles(("a", "b"), ("a", "b"), "dealer", ("a",))
    link = chosen(options)
    with (
        link or contextlib.nullcontext(),
        Mesh([sys.executable, __file__, "--worker"], roles, link=link) as mesh,
    ):
        results = mesh.results(timeout_s=60)
    for size in SIZES:
        median, cpu = results["a"][str(size)]
        print(f"{size:>8} bytes: {median:7.0f} us round trip, {cpu:7.0f} us CPU each side")


if __name__ == "__main__":
    main()
