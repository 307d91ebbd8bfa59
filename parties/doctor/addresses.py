"""Names and ports: what a name resolves to, and which of its addresses answer."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from parties.doctor.findings import Finding, Level, network
from parties.wire.proxy import Proxy
from parties.wire.reach import Resolved, Trouble, resolve, split, try_address, try_one

MAX_ADDRESSES = 16
"""How many addresses of one name are tried."""


def address(
    title: str, where: str, proxy: Proxy | None = None, timeout_s: float = 4.0
) -> Iterator[Finding]:
    """Resolve the host of `where` (tcp://host:port) and dial each of its addresses, or ask `proxy`,
    which resolves the name itself. Nothing is sent: ten bytes of the answer are read."""
    host, _ = split(where)
    if proxy is not None and proxy.covers(host):
        yield network(
            "name", Level.skipped, f"{title}: the proxy {proxy.url} resolves {host} itself"
        )
        yield from _by_proxy(title, where, proxy, timeout_s)
        return
    found = resolve(where)
    if isinstance(found, Trouble):
        yield _trouble("name", title, found)
        return
    shown = ", ".join(str(each[1][0]) for each in found[:MAX_ADDRESSES])
    yield network(
        "name", Level.passed, f"{title}: {host} is {shown}", figures={"addresses": len(found)}
    )
    yield from _each(title, where, found[:MAX_ADDRESSES], timeout_s)
    if proxy is None and _proxy_is_set():
        yield network(
            "proxy",
            Level.skipped,
            "HTTPS_PROXY is set, but this node's file has no proxy: it dials without one",
        )


def _proxy_is_set() -> bool:
    return bool(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"))


def _by_proxy(title: str, where: str, proxy: Proxy, timeout_s: float) -> Iterator[Finding]:
    started = time.perf_counter()
    trouble = try_address(where, timeout_s, proxy)
    seconds = time.perf_counter() - started
    if trouble is not None:
        yield _trouble("reach", title, trouble)
        return
    yield network(
        "reach",
        Level.passed,
        f"{title}: the proxy {proxy.url} connects to {where} in {seconds * 1000:.1f} ms",
        figures={"connect_ms": round(seconds * 1000, 2)},
    )


def _each(title: str, where: str, found: list[Resolved], timeout_s: float) -> Iterator[Finding]:
    def attempt(one: Resolved) -> tuple[Trouble | None, float]:
        started = time.perf_counter()
        return try_one(*one, where, timeout_s), time.perf_counter() - started

    with ThreadPoolExecutor(MAX_ADDRESSES) as pool:
        tried = list(zip(found, pool.map(attempt, found), strict=True))
    reached = any(trouble is None for _, (trouble, _) in tried)
    for (_, at), (trouble, seconds) in tried:
        if trouble is None:
            yield network(
                "reach",
                Level.passed,
                f"{title}: {at[0]} port {at[1]} answers in {seconds * 1000:.1f} ms",
                figures={"connect_ms": round(seconds * 1000, 2), "address": str(at[0])},
            )
        elif reached:
            why, _, remedy = trouble.text.partition(": ")
            yield network(
                "reach",
                Level.warning,
                f"{title}: of its addresses {at[0]} does not answer ({why})",
                f"{remedy}; or take that address out of the name's records",
                {"address": str(at[0])},
            )
        else:
            yield _trouble("reach", f"{title} ({at[0]})", trouble)


def _trouble(check: str, title: str, trouble: Trouble) -> Finding:
    why, _, remedy = trouble.text.rpartition(": ")
    return network(check, Level.problem, f"{title}: {why}", remedy)
