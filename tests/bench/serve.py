"""Questions to a model in shares: latency, throughput and memory, over real processes and
connections.

    .venv/bin/python tests/bench/serve.py --table
    .venv/bin/python tests/bench/serve.py --model net_a --rows 128 --clients 8
    .venv/bin/python tests/bench/serve.py --model logistic --rtt-ms 40
    .venv/bin/python tests/bench/serve.py --model logistic --requests 100000 --clients 4

A coordinator, two evaluators and the dealer run `mpc-train serve`, each a process of its own, with
a model of random weights. The clients are threads of this process, each with an identity and a
connection of its own, and ask one question after the other. Every answer is compared with what
PyTorch says in this process; one that differs, is refused or does not come ends the measurement.
`--rtt-ms` puts a wide-area link between all processes (`link.py`).

Each measurement is a line of JSON; `plain_ms` is the same forward pass by PyTorch. `--table`
measures all of `TABLE`, and says at the end, as Markdown, which bounds were missed; the exit status
is 1 then. With `--share 0.02` it asks a fiftieth of the questions, to see whether every row runs.
The exit status is 1 as well if a process holds more memory after `--requests` than before, by more
than GROWTH.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpc_train.admission.load import load_job
from mpc_train.asking.client import SharedService, connected
from mpc_train.jobs.job import Job
from mpc_train.node.storage import NodeVault
from mpc_train.owners.local import Local
from mpc_train.results.plain_model import plain_module
from mpc_train.run.memory import settle
from mpc_train.run.place import KeyPlace, VaultPlace
from mpc_train.serving.offered import MOST_ROWS
from mpc_train.shared.description import Description
from mpc_train.shared.library import Library
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from parties.nodes.node import NodeSettings
from protocols.arrays import Reals
from tests.bench.link import Link
from tests.bench.workloads import lenet_module
from tests.support.carried_models import write_carried
from tests.support.jobs import job_toml, write_job
from tests.support.served import SID, kept_in_shares, shares_of, some_weights
from tests.support.soak import TOLERANCE as GROWTH

ROOT = Path(__file__).resolve().parents[2]
EVALUATORS, DEALER, DESK = ("ann", "bob"), "registry", "desk"
PASSPHRASE = b"correct horse battery staple"
MODELS = {
    "logistic": (30, "logistic", ""),
    "net_a": (784, "mlp", "hidden = [128, 128]\nclasses = 10"),
    "lenet": (784, "softmax", 'classes = 10\ngraph = "model.json"'),
}
"""Inputs, kind, and more lines of the job's model."""
WITHIN = 2.0**-10
"""How far an answer may be from PyTorch's."""
WARM = 50
"""The share of the requests, one in so many, after which memory is looked at first."""


@dataclass(frozen=True)
class Case:
    """What is asked, and what it may take. rate: the least rows a second."""

    model: str
    rows: int = 1
    clients: int = 1
    questions: int = 300
    rtt_ms: float | None = None
    median_ms: float = float("inf")
    p99_ms: float = float("inf")
    rate: float = 0.0

    def fewer(self, share: float) -> "Case":
        """With this share of its questions, at least one for each client."""
        each = max(1, round(share * self.questions / self.clients))
        return replace(self, questions=each * self.clients)


RTT_MS = 40.0
MOST_CLIENTS = 16
TABLE = (
    Case("logistic", questions=1000, median_ms=8),
    Case("logistic", clients=MOST_CLIENTS, questions=3200),
    Case("logistic", 128, questions=300),
    Case("logistic", 128, 8, 800, rate=8000),
    Case("logistic", questions=50, rtt_ms=RTT_MS, median_ms=200),
    Case("net_a", questions=500, median_ms=20, p99_ms=40),
    Case("net_a", clients=MOST_CLIENTS, questions=1600),
    Case("net_a", 128, questions=100),
    Case("net_a", 128, 8, 400, rate=8000),
    Case("net_a", questions=50, rtt_ms=RTT_MS, median_ms=500),
    Case("lenet", questions=200),
    Case("lenet", clients=MOST_CLIENTS, questions=320),
    Case("lenet", 128, questions=20),
    Case("lenet", 128, 4, 40),
    Case("lenet", questions=30, rtt_ms=RTT_MS),
)
START_S, ANSWER_S = 180.0, 120.0
RULES = """
[rules]
recipients = []
dealers = ["registry"]
evaluators = ["ann", "bob"]
metrics = []
jobs = []
clients = CLIENTS
answers = ["number", "probability", "class"]
max_rows_a_day = 1000000000
"""


def names_of(clients: int) -> tuple[str, ...]:
    return tuple(f"clinic-{number}" for number in range(1, clients + 1))


def job_of(folder: Path, model: str, clients: int) -> Job:
    """A job with this model that stays in shares."""
    inputs, kind, lines = MODELS[model]
    if model == "lenet":
        write_carried(folder / "model.json", lenet_module(), (1, 28, 28))
    text = job_toml(
        [f"x{k}" for k in range(inputs)],
        kind,
        model=lines,
        rows=dict.fromkeys(EVALUATORS, 100),
        data="test_fraction = 0.2",
        more="[reveal]\nmetrics = []",
    )
    job = load_job(write_job(folder, text))
    return kept_in_shares(job, clients=names_of(clients), rows_a_day=10**9)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Service:
    """The processes of a service, and their files in `folder`."""

    def __init__(self, folder: Path, job: Job, link: Link | None) -> None:
        self.folder, self.job, self._link = folder, job, link
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        assert job.serve is not None
        self.clients = job.serve.clients
        names = (*EVALUATORS, DEALER, DESK, *self.clients)
        self.vaults = {name: FileVault.create(folder / name, name, PASSPHRASE) for name in names}
        self.roster = Roster.of([Card.load(folder / name / f"{name}.card") for name in names])
        for name in names:
            self.roster.save(folder / name / "roster")
        (folder / "passphrase").write_bytes(PASSPHRASE)
        (folder / "passphrase").chmod(0o600)
        weights = some_weights(job)
        self.weights = {name: value * 0.2 for name, value in weights.items()}
        described = Description(job, SID.hex())
        (folder / "served.model").write_bytes(described.to_bytes())
        for name, share in zip(EVALUATORS, shares_of(job, self.weights), strict=True):
            place = VaultPlace(folder / name / "vault", KeyPlace("identity:"), {})
            vault = NodeVault(place, name, self.vaults[name])
            library = Library(vault.opened)
            library.keep(share)
            library.sign(job.name, described.digest, b"a record that a service does not read")
        (folder / "service.toml").write_text(
            '[service]\nname = "bench"\nmodels = ["served.model"]\n'
        )

    def route(self, source: str, target: str, address: str) -> str:
        return address if self._link is None else self._link.route(source, target, address)

    def start(self) -> str:
        """Start all; the address of the coordinator."""
        desk = f"tcp://127.0.0.1:{free_port()}"
        rules = RULES.replace("CLIENTS", json.dumps(self.clients))
        self._start(DESK, f'[network]\nlisten = "{desk}"\n[run]\njob = "service.toml"\n')
        for name in (*EVALUATORS, DEALER):
            network = ""
            if name in EVALUATORS:
                listen = f"tcp://127.0.0.1:{free_port()}"
                network = f'listen = "{listen}"\nadvertise = "{self.route("a", name, listen)}"'
            address = self.route(name, DESK, desk)
            self._start(
                name,
                f'[coordinator]\nname = "{DESK}"\naddress = "{address}"\n{rules}\n'
                f"[network]\n{network}\n",
            )
        return desk

    def _start(self, name: str, rest: str) -> None:
        file = self.folder / f"{name}.toml"
        file.write_text(
            f'[node]\nname = "{name}"\nhome = "{name}"\nrun_dir = "run-{name}"\n{rest}'
            "[timeouts]\njoin_s = 600\n"
        )
        words = [sys.executable, "-m", "mpc_train", "serve", "--config", str(file)]
        words += ["--format", "json", "--passphrase-file", str(self.folder / "passphrase")]
        with (self.folder / f"{name}.out").open("wb") as out:
            self.processes[name] = subprocess.Popen(
                words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def memory(self) -> dict[str, tuple[int, int]]:
        """RSS of each process and what it has alone, in bytes; of this one as well."""
        found = {}
        for name, pid in {**self.pids, "clients": os.getpid()}.items():
            said = psutil.Process(pid).memory_full_info()
            found[name] = said.rss, said.uss
        return found

    @property
    def pids(self) -> dict[str, int]:
        return {name: one.pid for name, one in self.processes.items()}

    def cpu_s(self) -> dict[str, float]:
        return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in self.pids.items()}

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text()[-2000:]

    def close(self) -> None:
        for one in self.processes.values():
            one.terminate()
        for one in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(20)
            one.kill()


def _ignore(kind: object, fields: object) -> None: ...


@dataclass
class Bench:
    """A service, its clients' connections, and the rows that they ask about. service: what runs."""

    service: Service
    clients: Sequence[SharedService]

    def __post_init__(self) -> None:
        job = self.service.job
        self.module = plain_module(job).double().eval()
        weights = {name: torch.from_numpy(value) for name, value in self.service.weights.items()}
        self.module.load_state_dict(weights)
        width = len(job.pipeline.terms)
        rows = np.random.default_rng(3).uniform(0, 1, (MOST_ROWS, width))
        self.rows = Local(rows, np.ones((MOST_ROWS, 0)))
        with torch.inference_mode():
            self.right = self.module(torch.from_numpy(rows)).numpy()

    def plain_ms(self, rows: int, times: int = 50) -> float:
        """The median of the same forward pass in PyTorch, in float32."""
        module = plain_module(self.service.job).float().eval()
        module.load_state_dict(self.module.state_dict())
        x, found = torch.from_numpy(self.rows.values[:rows]).float(), []
        with torch.inference_mode():
            for _ in range(times):
                begun = time.perf_counter()
                module(x)
                found.append(time.perf_counter() - begun)
        return 1e3 * float(np.median(found))

    def ask(self, rows: int, clients: int, questions: int) -> tuple[Reals, float]:
        """Each client asks one after the other, all at once: the seconds of each question, and of
        all together. Raises what a client raises, and ValueError for an answer that is wrong."""
        local = Local(self.rows.values[:rows], self.rows.present[:rows])
        times = np.zeros((clients, questions // clients))

        def work(place: int) -> None:
            client = self.clients[place]
            ((offered,),) = client.models.values()
            for turn in range(times.shape[1]):
                begun = time.perf_counter()
                answer = client.ask(offered, local)
                times[place, turn] = time.perf_counter() - begun
                apart = float(np.abs(answer - self.right[:rows]).max())
                if apart > WITHIN:
                    raise ValueError(f"an answer is {apart} away from PyTorch's")

        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            for done in [pool.submit(work, place) for place in range(clients)]:
                done.result()
        return times.ravel(), time.perf_counter() - begun

    def measured(self, case: Case) -> dict[str, Any]:
        self.ask(case.rows, case.clients, 5 * case.clients)
        cpu = self.service.cpu_s()
        times, seconds = self.ask(case.rows, case.clients, case.questions)
        after = self.service.cpu_s()
        return {
            "model": case.model,
            "rows": case.rows,
            "clients": case.clients,
            "rtt_ms": case.rtt_ms,
            "questions": len(times),
            "seconds": seconds,
            "median_ms": 1e3 * float(np.median(times)),
            "p99_ms": 1e3 * float(np.percentile(times, 99)),
            "rate": case.rows * len(times) / seconds,
            "cpu_ms": {name: 1e3 * (after[name] - cpu[name]) / len(times) for name in after},
            "plain_ms": self.plain_ms(case.rows),
        }

    def soaked(self, rows: int, clients: int, requests: int) -> dict[str, Any]:
        """Memory before, in the middle of and after so many requests, while nobody asks."""
        warm, looks = max(clients, requests // WARM), []
        begun = time.perf_counter()
        for count in (warm, requests // 2 - warm, requests - requests // 2):
            self.ask(rows, clients, count // clients * clients)
            looks.append(self.service.memory())
        seconds = time.perf_counter() - begun
        return {
            "requests": requests,
            "after": [warm, requests // 2, requests],
            "clients": clients,
            "seconds": seconds,
            "memory_mb": {
                name: {
                    kind: [round(look[name][place] / 1e6, 1) for look in looks]
                    for place, kind in enumerate(("rss", "own"))
                }
                for name in looks[0]
            },
            "grew": [
                f"{name}, {kind}"
                for name in looks[0]
                for place, kind in enumerate(("rss", "own"))
                if looks[-1][name][place] > looks[0][name][place] * (1 + GROWTH)
            ],
        }


@contextlib.contextmanager
def serving(model: str, clients: int, rtt_ms: float | None) -> Iterator[Bench]:
    """A service of this model and the connections of so many clients."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        link = None if rtt_ms is None else stack.enter_context(Link(rtt_ms))
        service = Service(folder, job_of(folder, model, clients), link)
        try:
            desk = service.start()
            lines = []
            for name in service.clients:
                settings = NodeSettings(DESK, service.route(name, DESK, desk), folder / "run")
                vault = service.vaults[name]
                line = connected(
                    vault, service.roster, settings, _ignore, _ignore, START_S, ANSWER_S
                )
                lines.append(stack.enter_context(line))
            settle()  # as the commands of a client do
            yield Bench(service, lines)
        except BaseException:
            service.close()
            for each in service.processes:
                print(each, service.said(each), file=sys.stderr)
            raise
        finally:
            service.close()


def missed(case: Case, found: dict[str, Any]) -> list[str]:
    """The bounds that were missed, in words."""
    words = [
        f"{key} {found[key]:.1f} > {most:g}"
        for key, most in (("median_ms", case.median_ms), ("p99_ms", case.p99_ms))
        if found[key] > most
    ]
    return words + [f"{found['rate']:.0f} rows/s < {case.rate:g}"] * (found["rate"] < case.rate)


def measured(cases: Sequence[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
    """All of them, with one service for those of one model over one link."""
    for (model, rtt_ms), group in groupby(cases, lambda case: (case.model, case.rtt_ms)):
        some = list(group)
        with serving(model, max(case.clients for case in some), rtt_ms) as bench:
            for case in some:
                found = bench.measured(case)
                print(json.dumps(found), flush=True)
                yield case, found


def markdown(found: Sequence[tuple[Case, dict[str, Any]]]) -> Iterator[str]:
    head = "model|rows of a question|clients at once|round trip|median|99th percentile|"
    head += "rows a second|CPU of a question|PyTorch alone|missed"
    columns = head.split("|")
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for case, said in found:
        cells = [case.model, str(case.rows), str(case.clients)]
        cells.append("loopback" if case.rtt_ms is None else f"{case.rtt_ms:g} ms")
        cells += [f"{said[key]:.3g} ms" for key in ("median_ms", "p99_ms")]
        cells += [f"{said['rate']:,.0f}", f"{sum(said['cpu_ms'].values()):.3g} ms"]
        cells += [f"{said['plain_ms']:.2g} ms", "; ".join(missed(case, said))]
        yield f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="net_a")
    parser.add_argument("--rows", type=int, default=1, help="of each question, at most 128")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--clients", type=int, default=1, help="who ask at once")
    parser.add_argument("--rtt-ms", type=float, help="round trip between any two processes")
    parser.add_argument("--requests", type=int, help="ask so many, and look at memory")
    parser.add_argument(
        "--table", nargs="*", choices=MODELS, help="measure all cases of the table, or of models"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the table's questions")
    said = parser.parse_args()
    if said.requests is not None:
        with serving(said.model, said.clients, said.rtt_ms) as bench:
            soaked = bench.soaked(said.rows, said.clients, said.requests)
        print(json.dumps({"model": said.model, "rows": said.rows, **soaked}))
        return 1 if soaked["grew"] else 0
    one = Case(said.model, said.rows, said.clients, said.questions, said.rtt_ms)
    if said.table is None:
        cases: tuple[Case, ...] = (one,)
    else:
        chosen = [case for case in TABLE if case.model in (said.table or MODELS)]
        cases = tuple(case.fewer(said.share) for case in chosen)
    found: list[tuple[Case, dict[str, Any]]] = []
    try:
        for each in measured(cases):
            found.append(each)
    finally:
        if said.table is not None:  # also if a row of it fails: those before are said
            print("\n".join(markdown(found)), flush=True)
    return 1 if any(missed(*each) for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
