"""Tests at the start of a run whether a node can write at its end: a training may take days, and a
result that cannot be stored is lost for everybody."""

import math
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mpc_train.errors import ConfigError
from mpc_train.jobs.job import Job
from mpc_train.jobs.sealed import sealed_tensors
from parties.doctor.machine import usable_bytes, usable_together_bytes
from parties.files import open_to_others, private_directory, write_atomic

ENVELOPE_BYTES = 1 << 16
"""More than an envelope contains besides its numbers: statement, signatures, metrics."""

NUMBER_BYTES = 16
"""For each number of a model an envelope contains a masked word and a mask, of 8 bytes each."""

SHARED_BYTES = 100_000_000
"""At least this much of a node's memory is code of libraries, which nodes of one machine share."""

SPARE_BYTES = 16 << 20
"""For logs, own metrics and the file system itself."""


def run_directory(root: Path, name: str) -> Path:
    """The directory of this run's files, below `root`, which is created if necessary.

    Raises ConfigError if `root` cannot be written, or if others may enter it.
    """
    try:
        private_directory(root)
        if problem := open_to_others(root):
            raise ConfigError(f"run_dir {root}: {problem}")
        try_directory(root, name)
    except OSError as error:
        raise ConfigError(f"run_dir {root}: cannot be written ({error.strerror})") from error
    return root / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"


def try_directory(directory: Path, name: str) -> None:
    """Write a small file into `directory` and remove it. Raises OSError."""
    trial = directory / f".{name}-{os.getpid()}.trial"
    write_atomic(trial, bytes(4096))
    trial.unlink()


def check_room(root: Path, job: Job, recipients: int) -> None:
    """Raise ConfigError if `root` lacks the space for the results of `job`.

    recipients: for how many this node keeps results, each with one envelope of every evaluator. The
    envelopes are combined into one file before they are removed, which needs twice the space.
    """
    numbers = sum(math.prod(shape) for shape in sealed_tensors(job).values())
    envelope = NUMBER_BYTES * numbers + ENVELOPE_BYTES
    needed = 2 * recipients * len(job.evaluators) * envelope + SPARE_BYTES
    free = shutil.disk_usage(_existing(root)).free  # it is created at the first write
    if free < needed:
        raise ConfigError(
            f"run_dir {root}: {_mebibytes(free)} free, and the results of {job.name} need up to "
            f"{_mebibytes(needed)}; make room, or name a run_dir elsewhere"
        )


def check_disk(job: Job, needed: Mapping[Path, int]) -> None:
    """Raise ConfigError if a disk lacks the space for what a run keeps on it.

    needed: bytes by folder; folders of one disk are added up.
    """
    together: dict[int, list[Path]] = {}
    for folder in needed:
        there = _existing(folder)
        together.setdefault(there.stat().st_dev, []).append(folder)
    for folders in together.values():
        count = sum(needed[folder] for folder in folders)
        free = shutil.disk_usage(_existing(folders[0])).free
        if count and free < count + SPARE_BYTES:
            raise ConfigError(
                f"{', '.join(map(str, folders))}: {_mebibytes(free)} free, and checkpoints and "
                f"stored material of {job.name} need up to {_mebibytes(count + SPARE_BYTES)}; make "
                "room, name a folder elsewhere (node.run_dir, vault.folder), or agree on a job "
                "without preprocess. Nothing was shared"
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there already."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return there


def check_memory(job: Job, me: str, needed: int, allowed: int) -> str:
    """Return a sentence about the memory that this node's process will need; raise ConfigError if
    it may not have so much.

    allowed: bytes of `node.memory_gb`, 0 if the node's file does not say; then what the machine has
    free counts, and the limits set to this process.
    """
    own = psutil.Process().memory_info().rss
    usable = allowed or usable_bytes() + own
    said = f"this node needs about {_gigabytes(needed)} of memory for the job {job.name}"
    if needed <= usable:
        return said
    source = "node.memory_gb allows" if allowed else "this process may take"
    raise ConfigError(
        f"{said}, and {source} {_gigabytes(usable)}: {me} would be killed during the run. Use "
        f"{_less(job)} or a larger machine, or end other programs; mpc-train "
        f"{'job check' if job.federates else 'estimate'} shows what helps, and node.memory_gb says "
        "how much may be taken, if you know better. Nothing was shared"
    )


def check_memory_together(job: Job, needs: Mapping[str, int]) -> None:
    """Raise ConfigError if this machine cannot hold the processes of all nodes at once.

    needs: bytes by node. Libraries are in memory once, however many processes use them.
    """
    together = sum(needs.values()) - SHARED_BYTES * (len(needs) - 1)
    usable = usable_together_bytes()
    if together > usable:
        each = ", ".join(f"{name} {_gigabytes(count)}" for name, count in needs.items())
        raise ConfigError(
            f"the nodes of {job.name} need about {_gigabytes(together)} of memory together "
            f"({each}), and this machine can give {_gigabytes(usable)}: some would be killed "
            f"during the run. Use {_less(job)}, end other programs, or run each node on a machine "
            "of its own. Nothing was started"
        )


def _less(job: Job) -> str:
    """What of the job takes memory."""
    if job.federates:
        return f"a smaller network than {job.model.module}, or fewer owners at once"
    return f"smaller batches (train.batch_size = {job.train.batch_size}), fewer rows ({job.rows:,})"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
