"""Questions to a model in shares: latency and throughput, over real processes and connections.

    .venv/bin/python tests/bench/serve.py --model net_a --questions 300
    .venv/bin/python tests/bench/serve.py --model logistic --rtt-ms 40
    .venv/bin/python tests/bench/serve.py --model net_a --rows 128 --clients 8

A coordinator, two evaluators and the dealer run `mpc-train serve`, each a process of its own, with
a model of random weights; the clients are threads of this process, which ask one question after the
other. `--rtt-ms` puts a wide-area link between all of them (`link.py`). The last line is a JSON
object; `plain_ms` is the same forward pass by PyTorch in this process.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpc_train.admission.load import load_job
from mpc_train.asking.client import connected
from mpc_train.jobs.job import Job
from mpc_train.node.storage import NodeVault
from mpc_train.owners.local import Local
from mpc_train.run.place import KeyPlace, VaultPlace
from mpc_train.shared.description import Description
from mpc_train.shared.library import Library
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from parties.nodes.node import NodeSettings
from tests.bench.link import Link
from tests.support.served import SID, kept_in_shares, shares_of, some_weights

ROOT = Path(__file__).resolve().parents[2]
EVALUATORS, DEALER, DESK, CLIENT = ("ann", "bob"), "registry", "desk", "clinic"
NAMES = (*EVALUATORS, DEALER, DESK, CLIENT)
PASSPHRASE = b"correct horse battery staple"
MODELS = {
    "logistic": (30, 'kind = "logistic"'),
    "net_a": (784, 'kind = "mlp"\nhidden = [128, 128]\nclasses = 10'),
    "lenet": (
        784,
        'kind = "softmax"\nclasses = 10\nmodule = "net:lenet"\ninput_shape = [1, 28, 28]',
    ),
}
START_S = 180.0
RULES = """
[rules]
recipients = []
dealers = ["registry"]
evaluators = ["ann", "bob"]
metrics = []
jobs = []
clients = ["clinic"]
answers = ["number", "probability", "class"]
max_rows_a_day = 1000000000
"""


def job_of(folder: Path, model: str) -> Job:
    """A job with this model that stays in shares."""
    inputs, network = MODELS[model]
    sys.path.insert(0, str(ROOT / "examples" / "lenet"))
    features = ", ".join(f'"x{k}"' for k in range(inputs))
    (folder / "job.toml").write_text(
        f"""
[job]
name = "{model.replace("_", "-")}"
owners = ["ann", "bob"]
dealer = "registry"
recipients = ["ann"]
[data]
features = [{features}]
label = "y"
test_fraction = 0.2
rows = {{ ann = 100, bob = 100 }}
[model]
{network}
[train]
epochs = 1
batch_size = 10
optimizer = {{ name = "sgd", learning_rate = 0.1 }}
[reveal]
metrics = []
"""
    )
    job = load_job(folder / "job.toml")
    return kept_in_shares(job, clients=(CLIENT,), rows_a_day=10**9)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Service:
    """The processes of a service, and their files in `folder`."""

    def __init__(self, folder: Path, job: Job, link: Link | None) -> None:
        self.folder, self.job, self._link = folder, job, link
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.vaults = {name: FileVault.create(folder / name, name, PASSPHRASE) for name in NAMES}
        cards = [Card.load(folder / name / f"{name}.card") for name in NAMES]
        for name in NAMES:
            Roster.of(cards).save(folder / name / "roster")
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
        """Start all; the client's address of the coordinator."""
        desk = f"tcp://127.0.0.1:{free_port()}"
        self._start(DESK, f'[network]\nlisten = "{desk}"\n[run]\njob = "service.toml"\n')
        for name in (*EVALUATORS, DEALER):
            network = ""
            if name in EVALUATORS:
                listen = f"tcp://127.0.0.1:{free_port()}"
                network = f'listen = "{listen}"\nadvertise = "{self.route("a", name, listen)}"'
            address = self.route(name, DESK, desk)
            self._start(
                name,
                f'[coordinator]\nname = "{DESK}"\naddress = "{address}"\n{RULES}\n'
                f"[network]\n{network}\n",
            )
        return self.route(CLIENT, DESK, desk)

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

    def rss_mb(self) -> dict[str, float]:
        return {
            name: round(psutil.Process(one.pid).memory_info().rss / 1e6, 1)
            for name, one in self.processes.items()
        }

    def cpu_s(self) -> dict[str, float]:
        return {
            name: sum(psutil.Process(one.pid).cpu_times()[:2])
            for name, one in self.processes.items()
        }

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


@contextlib.contextmanager
def serving(model: str, link: Link | None) -> Iterator[tuple[Service, Any]]:
    """A service of this model and a client's connection to it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        service = Service(folder, job_of(folder, model), link)
        try:
            address = service.start()
            vault = service.vaults[CLIENT]
            roster = Roster.load(folder / CLIENT / "roster")
            settings = NodeSettings(DESK, address, folder / "run")
            with connected(vault, roster, settings, _ignore, _ignore, START_S) as client:
                yield service, client
        except BaseException:
            service.close()
            for each in service.processes:
                print(each, service.said(each), file=sys.stderr)
            raise
        finally:
            service.close()


def plain_ms(job: Job, weights: dict[str, np.ndarray], rows: np.ndarray, times: int = 50) -> float:
    """The median of the same forward pass in PyTorch."""
    import torch

    from mpc_train.results.plain_model import plain_module

    module = plain_module(job)
    module.load_state_dict(
        {name: torch.from_numpy(value).float() for name, value in weights.items()}, strict=False
    )
    module.eval()
    x, found = torch.from_numpy(rows).float(), []
    with torch.inference_mode():
        for _ in range(times):
            begun = time.perf_counter()
            module(x)
            found.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(found))


def asked(client: Any, rows: int, questions: int, clients: int) -> dict[str, float]:
    """Ask from several threads at once; each question has as many rows."""
    ((offered,),) = client.models.values()
    width, rng = len(offered.job.pipeline.terms), np.random.default_rng(3)
    local = Local(rng.uniform(0, 1, (rows, width)), np.ones((rows, 0)))
    for _ in range(5):
        client.ask(offered, local)
    times: list[float] = []

    def one(count: int) -> None:
        for _ in range(count):
            begun = time.perf_counter()
            client.ask(offered, local)
            times.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=one, args=(questions // clients,)) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    found = 1e3 * np.array(times)
    return {
        "questions": len(times),
        "seconds": seconds,
        "rows_per_second": rows * len(times) / seconds,
        "median_ms": float(np.median(found)),
        "p99_ms": float(np.percentile(found, 99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="net_a")
    parser.add_argument("--rows", type=int, default=1, help="of each question")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--clients", type=int, default=1, help="who ask at once")
    parser.add_argument("--rtt-ms", type=float, help="round trip between any two processes")
    parser.add_argument("--check", action="store_true", help="compare answers with PyTorch's")
    options = parser.parse_args()
    link = None if options.rtt_ms is None else Link(options.rtt_ms)
    with link or contextlib.nullcontext(), serving(options.model, link) as (service, client):
        ((offered,),) = client.models.values()
        rng = np.random.default_rng(3)
        width = len(offered.job.pipeline.terms)
        rows = rng.uniform(0, 1, (options.rows, width))
        clear = plain_ms(offered.job, service.weights, rows)
        before, cpu = service.rss_mb(), service.cpu_s()
        found = asked(client, options.rows, options.questions, options.clients)
        after = service.cpu_s()
        print(
            json.dumps(
                {
                    "model": options.model,
                    "rows": options.rows,
                    "clients": options.clients,
                    "rtt_ms": options.rtt_ms,
                    **found,
                    "plain_ms": clear,
                    "cpu_ms_per_question": {
                        name: 1e3 * (after[name] - cpu[name]) / found["questions"] for name in after
                    },
                    "rss_mb": {"before": before, "after": service.rss_mb()},
                }
            )
        )


if __name__ == "__main__":
    main()
