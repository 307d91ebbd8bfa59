"""Every field of a job at its extremes, as a node meets it before its rules: memory, work counted.

Run as a process of its own, `python -m tests.support.job_extremes BODY…`: its address space is
limited to what it has after its imports and a little more, and the calls that a case makes are
counted. Prints one JSON object: how many cases ended how, and those that ended as none may.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpc_train.admission.load import job_from_bytes
from mpc_train.admission.rules import Rules, check_rules
from mpc_train.errors import JobError, RefusedError
from mpc_train.results.report import describe

MEMORY_BYTES = 512 << 20
MAX_CALLS = 25_000_000
"""Some 250 for each of the 75,000 columns that 1 MiB can name, the interpreter's too: a few
seconds. What grows with the product of two parts of a job takes thousands of millions."""

WHOLE = (
    *(-1, 0, 1, 2**31, 10**9, 10**12, 10**18, 2**63 - 1, 2**63),
    *(10**30, -(10**30), 10**4000),
)
REAL = (
    *("1e-1000000", "1e1000000", "1E+999999999999999999", "-1e1000000", "NaN", "sNaN", "Infinity"),
    *("0", "-0", "1e30", "1e-30", "0." + "0" * 59 + "1", "9" * 60, "9" * 5000, "1e31"),
)
TEXT = ("", "a" * 500, "a" * 500_000, "\x1b[31m", "a\nb", "\u202eabc", "../..", "\ud800")


def leaves(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of everything in a tree, inner parts too; of lists of like things the first two."""
    if path:
        yield path
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2])
        for key, value in items:
            yield from leaves(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def with_value(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with another value at the path."""
    if not path:
        return value
    head, *rest = path
    copied: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copied[head] = with_value(tree[head], tuple(rest), value)
    return copied


def extremes(value: Any) -> Iterator[Any]:
    """What may stand in the place of a value, as large and as odd as its type lets it be."""
    yield from (None, [], {}, [[[[[[]]]]]])
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from WHOLE
    elif isinstance(value, str):
        yield from REAL if value.replace(".", "", 1).isdigit() else (*TEXT, *REAL[:2])
    elif isinstance(value, list):
        item = value[0] if value else 1
        yield [item] * (900_000 // (len(json.dumps(item)) + 1))
        yield [2**63 - 1] * 40_000
        yield [f"n{number}" for number in range(80_000)]
        yield [*value, *value]
    elif isinstance(value, dict):
        first = next(iter(value.values()), 1)
        size = len(json.dumps(first)) + 12
        yield {f"n{number}": first for number in range(min(60_000, 900_000 // size))}
        yield {**value, "\x1b[31m": first}


def cases(tree: Any) -> Iterator[tuple[str, Any]]:
    for path in leaves(tree):
        for value in extremes(at(tree, path)):
            shown = json.dumps(value)
            place = ".".join(map(str, path))
            yield f"{place} = {shown[:60]} ({len(shown)})", with_value(tree, path, value)


class TooMuchWork(Exception):
    """A case made more calls than a job may cost before its rules."""


def judged(body: bytes) -> str:
    """What a node does with a body before its rules have allowed it."""
    left = MAX_CALLS

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooMuchWork

    sys.setprofile(count)
    try:
        job = job_from_bytes(body)
        describe(job)
        check_rules(Rules(("nobody",), ("nobody",), ("nobody",)), job, "nobody")
    except JobError as error:
        return "said too much" if len(str(error)) > 20_000 else "job"
    except RefusedError:
        return "rules"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        sys.setprofile(None)
    return "allowed"


def limited() -> None:
    """From here on the process gets no more memory than a little."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    sys.set_int_max_str_digits(0)  # so that the cases can be written; jobs are read with the bound
    counts: Counter[str] = Counter()
    bad = []
    bodies = [Path(name).read_bytes() for name in sys.argv[1:]]
    for body in bodies:
        assert judged(body) in ("rules", "job"), judged(body)
    limited()
    for body in bodies:
        for title, tree in cases(json.loads(body)):
            spelt = json.dumps(tree, separators=(",", ":"), ensure_ascii=False)
            sys.set_int_max_str_digits(4300)
            found = judged(spelt.encode("utf-8", "surrogatepass"))
            sys.set_int_max_str_digits(0)
            counts[found if found in ("job", "rules") else "bad"] += 1
            if found not in ("job", "rules"):
                bad.append(f"{title}: {found}")
    print(json.dumps({"counts": counts, "bad": bad}))


if __name__ == "__main__":
    main()
