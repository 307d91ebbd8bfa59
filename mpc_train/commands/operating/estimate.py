"""`mpc-train estimate`: what a job will cost, before anybody runs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import Format, FormatOption, emit, reporting
from mpc_train.errors import ConfigError

if TYPE_CHECKING:
    from mpc_train.estimates.estimate import Estimate


def estimate_command(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    rtt_ms: Annotated[
        float, typer.Option("--rtt-ms", min=0, help="A round trip between two nodes.")
    ],
    mbit_s: Annotated[
        float, typer.Option("--mbit-s", min=0.001, help="What a node can send and receive.")
    ],
    rows: Annotated[
        list[str] | None,
        typer.Option(metavar="OWNER=N", help="Rows of an owner instead of the job's; repeatable."),
    ] = None,
    joined: Annotated[
        int | None,
        typer.Option(
            min=1, help="Records that all owners have; default: all of the shortest table."
        ),
    ] = None,
    output: FormatOption = Format.text,
) -> None:
    """Print rounds, bytes, memory and time of a job, from a dry run over shapes alone.

    Rounds and bytes are exact. Memory and time are estimates; time is that of machines like this
    one.
    """
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.estimates.estimate import Link, estimate, with_rows
        from mpc_train.estimates.speed import measured_speed

        job = load_job(path)
        if joined is not None and job.data.join is None:
            raise ConfigError("--joined: the job joins no records")
        job = with_rows(job, _numbers(rows or ()))
        if joined is not None and joined > min(job.data.rows.values()):
            raise ConfigError("--joined: more records than the shortest table has")
        link = Link(rtt_ms / 1000, mbit_s * 1e6 / 8)
        found = estimate(job, link, measured_speed(), joined)
        if output is Format.json:
            emit({"status": "ok", "job": job.name, **_record(found)})
            return
        say("\n".join(_lines(found, job.dealer)))


def _numbers(given: Sequence[str]) -> dict[str, int]:
    """Rows by owner; raises ConfigError."""
    found = {}
    for word in given:
        name, _, number = word.partition("=")
        if not number.isascii() or not number.isdigit() or int(number) == 0:
            raise ConfigError(f"--rows {word}: write OWNER=N with a number of rows, as ann=5000")
        found[name] = int(number)
    return found


def _record(found: "Estimate") -> dict[str, object]:
    return {
        "rounds": found.rounds,
        "training_rounds": found.training_rounds,
        "dealer_bytes": found.dealer_bytes,
        "seconds": round(found.seconds, 3),
        "nodes": {
            name: {
                "bytes_sent": node.bytes_sent,
                "bytes_received": node.bytes_received,
                "memory_bytes": node.memory_bytes,
                "disk_bytes": node.disk_bytes,
            }
            for name, node in found.nodes.items()
        },
        "phases": {
            name: {
                "rounds": phase.rounds,
                "bytes_sent": phase.bytes_sent,
                "bytes_received": phase.bytes_received,
                "seconds": round(phase.seconds, 3),
                "compute_seconds": round(phase.compute_s, 3),
                "wait_seconds": round(phase.wait_s, 3),
                "send_seconds": round(phase.send_s, 3),
            }
            for name, phase in found.phases.items()
        },
    }


def _lines(found: "Estimate", dealer: str) -> list[str]:
    """A table of the phases, one of the nodes, and where the time goes."""
    rows = [("phase", "rounds", "sent by a node", f"sent by {dealer}", "time")]
    for name, phase in found.phases.items():
        most = max(sent for node, sent in phase.bytes_sent.items() if node != dealer)
        dealt = phase.bytes_sent[dealer]
        rows.append((name, f"{phase.rounds:,}", _size(most), _size(dealt), _time(phase.seconds)))
    most = max(node.bytes_sent for name, node in found.nodes.items() if name != dealer)
    total = ("total", f"{found.rounds:,}", _size(most), _size(found.dealer_bytes))
    rows.append((*total, _time(found.seconds)))
    nodes = [("node", "sends", "receives", "memory", "disk")]
    for name, node in found.nodes.items():
        sent, received = _size(node.bytes_sent), _size(node.bytes_received)
        nodes.append((name, sent, received, _size(node.memory_bytes), _size(node.disk_bytes)))
    parts = found.phases.values()
    return [
        *_columns(rows),
        "",
        *_columns(nodes),
        "",
        f"time: {_time(sum(p.compute_s for p in parts))} computing on machines like this one "
        f"(estimate), {_time(sum(p.wait_s for p in parts))} waiting for round trips, "
        f"{_time(sum(p.send_s for p in parts))} sending",
    ]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return (
                f"{count / unit:.3g} {name}"
                if count < 1000 * unit
                else f"{count / unit:,.0f} {name}"
            )
    return f"{count} B"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
