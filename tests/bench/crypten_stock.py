"""What one step costs in stock CrypTen 0.4.1: the baseline that `step.py --vs crypten` divides by.

Written as a CrypTen user would write it: `crypten.nn`, its autograd, `crypten.optim.SGD`, the
Beaver protocol with CrypTen's trusted third party (the provider whose trust is nearest to our
dealer's). Every party and the third party is an operating-system process with one compute thread,
and they talk through gloo over loopback. Inputs, labels and weights are shared before the clock
starts; a step is forward, backward and update between two barriers.

Two ways to write it. The default is that of CrypTen's tutorials: the loss with its value, and
`model.update_parameters`, which by default zeroes gradients above a threshold, because CrypTen's
truncation can return large wrong results. `lean=True` leaves out what our step does not need
either: losses that skip their value, and `crypten.optim.SGD` without a threshold (wrap errors are
then not guarded against). Either way the loss is on logits, the faster choice, and CrypTen's
traffic is neither encrypted nor authenticated.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH = 128
RELU_ELEMENTS = 100_000
WORKLOADS = ("lr784", "net_a", "relu", "matmul", "softmax")
LEARNING_RATE = 0.1

Step = Callable[[], None]
Check = Callable[[], float]

_ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class StockResult:
    """One measurement; parties are numbered as CrypTen's ranks, the third party comes extra."""

    workload: str
    parties: int
    steps: int
    step_seconds_median: float
    """Median over steps of the slowest party's time."""
    cpu_seconds_per_step: float
    """User and system time of all processes, the third party's included."""
    lean: bool
    """Without the loss's value and without the threshold on gradients."""
    bytes_sent: int
    """Bytes that one party sends in a step, mean over parties, by CrypTen's own count. That counts
    tensor elements sent and received, hence halved here; what rank 0 asks of the third party is
    in it, framing and what the third party sends to others is not."""
    calls: int
    """Communication calls of rank 0 in a step, by CrypTen's own count (it calls them rounds; each
    request to the third party is three of them)."""
    peak_rss_mb: float
    """Largest resident size of any process."""
    max_error: float
    """Largest absolute difference from PyTorch: of the result, or of a weight after all steps.
    CrypTen itself decodes some negative values one too low."""


class StockError(Exception):
    """The baseline could not be measured; the message holds the end of a process's output."""


def run_stock(
    workload: str,
    parties: int = 2,
    steps: int = 20,
    warmup: int = 2,
    *,
    lean: bool = False,
    timeout_s: float = 900.0,
) -> StockResult:
    """Measure stock CrypTen in `parties` + 1 new processes and wait until all have ended.

    Raises ValueError for arguments outside their range and StockError when a process fails or
    the whole measurement takes longer than `timeout_s`.
    """
    if workload not in WORKLOADS:
        raise ValueError(f"workload {workload!r} is none of {', '.join(WORKLOADS)}")
    if parties < 2 or steps < 1 or warmup < 0:
        raise ValueError("need at least 2 parties, 1 step and 0 warm-up steps")
    with tempfile.TemporaryDirectory(prefix="crypten-stock-") as directory:
        folder = Path(directory)
        with _processes(folder, workload, parties, steps, warmup, lean) as started:
            _wait(started, folder, time.monotonic() + timeout_s)
        reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(parties + 1)]
    members = reports[:parties]
    step_seconds = [max(times) for times in zip(*(r["seconds"] for r in members), strict=True)]
    return StockResult(
        workload=workload,
        parties=parties,
        steps=steps,
        step_seconds_median=statistics.median(step_seconds),
        cpu_seconds_per_step=sum(r["cpu_seconds"] for r in members) / steps,
        lean=lean,
        bytes_sent=round(sum(r["bytes"] for r in members) / 2 / parties),
        calls=members[0]["calls"],
        peak_rss_mb=max(r["peak_rss_mb"] for r in reports),
        max_error=members[0]["max_error"],
    )


@contextlib.contextmanager
def _processes(
    folder: Path, workload: str, parties: int, steps: int, warmup: int, lean: bool
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The third party, then the members; whatever happens, none outlives the block."""
    environment = os.environ | {
        "DISTRIBUTED_BACKEND": "gloo",
        # A file instead of a port: nobody can take it between choosing and listening.
        "RENDEZVOUS": f"file://{folder / 'rendezvous'}",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        "WORLD_SIZE": str(parties),
    }
    started: list[subprocess.Popen[bytes]] = []

    def start(rank: int, dealer_pid: int) -> subprocess.Popen[bytes]:
        numbers = map(str, (steps, warmup, int(lean), dealer_pid))
        with (folder / f"{rank}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).resolve()),
                    "--member",
                    str(folder),
                    workload,
                    *numbers,
                ],
                env=environment | {"RANK": str(rank)},
                # A member ends when this pipe does: no orphans, even if we are killed.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    try:
        dealer = start(parties, 0)
        for rank in range(parties):
            start(rank, dealer.pid)
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, deadline: float) -> None:
    reason = ""
    while not reason and any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if time.monotonic() > deadline:
            reason = "timed out"
        reason = next((f"exit status {p.poll()}" for p in processes if p.poll()), reason)
    if reason:
        logs = (log.read_text(errors="replace")[-1500:] for log in sorted(folder.glob("*.log")))
        raise StockError(f"stock CrypTen: {reason}\n" + "\n".join(logs))


# What follows runs inside the processes.


def _member(
    folder: Path, workload: str, steps: int, warmup: int, lean: int, dealer_pid: int
) -> None:
    """One party, or the third party if the rank is the number of parties."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    rank, parties = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import torch

    from protocols.crypten_tensor.importing import crypten

    torch.set_num_threads(1)
    crypten.cfg.mpc.provider = "TTP"
    if rank == parties:
        crypten.mpc.provider.TTPServer()
        report: dict[str, Any] = {}
    else:
        crypten.init()
        step, error = _workload(crypten, workload, bool(lean))
        report = _measure(crypten, step, steps, warmup, dealer_pid if rank == 0 else None)
        report["max_error"] = error()
        crypten.uninit()
    report["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / f"{rank}.json").write_text(json.dumps(report))


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: its lock would be held when the interpreter ends
    os._exit(1)


def _measure(
    crypten: Any, step: Step, steps: int, warmup: int, dealer_pid: int | None
) -> dict[str, Any]:
    """Time `steps` steps at this party; whoever is given `dealer_pid` adds that CPU time."""
    import psutil

    communicator = crypten.communicator.get()
    for _ in range(warmup):
        step()
    dealer = psutil.Process(dealer_pid) if dealer_pid is not None else None

    def cpu_seconds() -> float:
        return time.process_time() + (sum(dealer.cpu_times()[:2]) if dealer else 0.0)

    seconds = []
    communicator.barrier()
    cpu_before = cpu_seconds()
    for _ in range(steps):
        communicator.barrier()
        begin = time.perf_counter()
        step()
        communicator.barrier()
        seconds.append(time.perf_counter() - begin)
    cpu = cpu_seconds() - cpu_before
    # Counting costs a little, so it has a step of its own outside the clock.
    crypten.cfg.communicator.verbose = True
    communicator.reset_communication_stats()
    step()
    counted = communicator.get_communication_stats()
    crypten.cfg.communicator.verbose = False
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "bytes": counted["bytes"],
        "calls": counted["rounds"],
    }


def _workload(crypten: Any, name: str, lean: bool) -> tuple[Step, Check]:
    """The step to time, and the largest difference of what it computed from PyTorch.

    The same plaintext is drawn at every party only to compare with; rank 0's is shared.
    """
    import torch

    generator = torch.Generator().manual_seed(1)

    def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    if name == "relu":
        return _operation(crypten, lambda a: a.relu(), uniform(RELU_ELEMENTS, low=-8.0, high=8.0))
    if name == "matmul":
        inputs = uniform(BATCH, 784), uniform(784, 128)
        return _operation(crypten, lambda a, b: a.matmul(b), *inputs)
    if name == "softmax":
        return _operation(crypten, lambda a: a.softmax(1), uniform(BATCH, 10, low=-4.0, high=4.0))

    x = uniform(BATCH, 784, low=0.0)
    widths: tuple[int, ...]
    if name == "lr784":
        labels = (uniform(BATCH, 1) > 0).float()
        loss_kind, widths = "BCEWithLogitsLoss", (784, 1)
    elif name == "net_a":
        classes = torch.randint(10, (BATCH,), generator=generator)
        labels = torch.nn.functional.one_hot(classes, 10).float()
        loss_kind, widths = "CrossEntropyLoss", (784, 128, 128, 10)
    else:
        raise KeyError(name)
    loss = getattr(crypten.nn, loss_kind)(skip_forward=lean)
    return _training(
        crypten,
        _network(crypten.nn, widths),
        loss,
        _network(torch.nn, widths),
        getattr(torch.nn, loss_kind)(),
        x,
        labels,
        lean,
    )


def _network(nn: Any, widths: tuple[int, ...]) -> Any:
    """Linear layers with ReLU between them, out of `torch.nn` or `crypten.nn` alike."""
    layers: list[Any] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _training(
    crypten: Any,
    model: Any,
    loss: Any,
    twin: Any,
    twin_loss: Any,
    x: Any,
    labels: Any,
    lean: bool,
) -> tuple[Step, Check]:
    import torch

    model.encrypt(src=0)
    model.train()
    with torch.no_grad():
        for own, shared in zip(twin.parameters(), model.parameters(), strict=True):
            own.copy_(shared.get_plain_text())
    optimizer = crypten.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    shared_x, shared_labels = (crypten.cryptensor(plain, src=0) for plain in (x, labels))
    steps = 0

    def step() -> None:
        nonlocal steps
        model.zero_grad()
        loss(model(shared_x), shared_labels).backward()
        if lean:
            optimizer.step()
        else:
            model.update_parameters(LEARNING_RATE)
        steps += 1

    def largest_weight_difference() -> float:
        twin_optimizer = torch.optim.SGD(twin.parameters(), lr=LEARNING_RATE)
        for _ in range(steps):
            twin_optimizer.zero_grad()
            twin_loss(twin(x), labels).backward()
            twin_optimizer.step()
        pairs = zip(twin.parameters(), model.parameters(), strict=True)
        return max(_difference(shared.get_plain_text(), own) for own, shared in pairs)

    return step, largest_weight_difference


def _operation(crypten: Any, function: Callable[..., Any], *inputs: Any) -> tuple[Step, Check]:
    shared = [crypten.cryptensor(plain, src=0) for plain in inputs]
    results: list[Any] = []

    def step() -> None:
        with crypten.no_grad():
            results[:] = [function(*shared)]

    return step, lambda: _difference(results[0].get_plain_text(), function(*inputs))


def _difference(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max())


def main() -> None:
    """Print one JSON object: a StockResult."""
    if sys.argv[1:2] == ["--member"]:
        folder, workload, *numbers = sys.argv[2:]
        _member(Path(folder), workload, *map(int, numbers))
        return
    parser = argparse.ArgumentParser(description="One step in stock CrypTen 0.4.1, as JSON.")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--lean", action="store_true", help="no loss value, no threshold")
    arguments = parser.parse_args()
    result = run_stock(**vars(arguments))
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    main()
