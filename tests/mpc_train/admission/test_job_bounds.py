"""A job from elsewhere costs next to nothing before this node's rules are asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.admission.rules import Rules
from mpc_train.base.printing import hidden
from mpc_train.base.problem import JobProblem
from mpc_train.commands.common import Format
from mpc_train.commands.nodes import Events, _Guarded
from mpc_train.errors import JobError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import leaving
from mpc_train.jobs.schedule import (
    distinct_rates,
    held_out_of,
    held_out_sizes,
    learning_rate,
    total_steps,
)
from mpc_train.networks.graph import Graph, GraphError, Node, check_graph
from mpc_train.networks.plain import OPERATIONS, dry_run
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.tables.faults import Faults
from mpc_train.tables.loading.filling import Filling
from mpc_train.tables.schema import Column, Schema, check_schema
from mpc_train.training.watch import disclosures
from parties.agreement.contract import Roles
from parties.keys.roster import Roster
from tests.support.audit_logs import audit_log
from tests.support.jobs import replaced, write_job
from tests.support.node_vaults import node_vault

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = (
    *("breast_cancer/job.toml", "credit_columns/job.toml", "diabetes/statistics.toml"),
    *("hospitals_rows/job.toml", "digits/job.toml"),
)
RICH = """
schedule = { name = "step", every = 2, factor = 0.5, warmup_steps = 3 }
clip = { norm = 1 }
loss = { class_weights = [1, 2, 3], label_smoothing = 0.1 }
early_stopping = { fraction = 0.3 }
guard = { every = 4 }
warm_start = { source = "ann", frozen = ["0."] }
"""


def rich(folder: Path) -> Job:
    """A job with nearly every key that goes with the others."""
    text = replaced("seed = 7", f"seed = 7\n{RICH}")
    text = text.replace('kind = "logistic"', 'kind = "mlp"\nhidden = [4, 4]\nclasses = 3')
    text = text.replace('"accuracy", "auc"', '"accuracy"')
    text += 'per_party = ["accuracy"]\nleast_test_rows = 5\ndecimals = 3\n'
    text += "training_loss_every = 5\nleast_group = 2\n"
    return load_job(write_job(folder, text))


def carried(folder: Path) -> Job:
    """A job with a network of its own, of every kind of setting."""
    nodes: list[dict[str, Any]] = [
        {"name": "s", "op": "scale", "inputs": ["x"], "shape": [2], "settings": {"factor": "1/3"}},
        {"name": "r", "op": "reshape", "inputs": ["s"], "shape": [1, 2]},
        {
            "name": "m",
            "op": "mean",
            "inputs": ["r"],
            "shape": [2],
            "settings": {"axes": [0], "keep": False},
        },
        {
            "name": "y",
            "op": "linear",
            "inputs": ["m"],
            "shape": [1],
            "tensors": {"weight": "weight"},
        },
    ]
    graph = {
        "input_name": "x",
        "input_shape": [2],
        "nodes": nodes,
        "output": "y",
        "entries": [{"name": "weight", "shape": [1, 2], "kind": "parameter"}],
    }
    (folder / "model.json").write_text(
        json.dumps({"graph": graph, "weights": {"weight": "A" * 10 + "A="}})
    )
    return load_job(
        write_job(folder, replaced('kind = "logistic"', 'kind = "logistic"\ngraph = "model.json"'))
    )


def bodies(folder: Path) -> dict[str, Job]:
    found = {name: load_job(ROOT / "examples" / name) for name in EXAMPLES}
    return {**found, "rich": rich(folder), "carried": carried(folder)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*EXAMPLES, "rich", "carried"])
def test_every_field_at_its_extremes(tmp_path: Path, name: str) -> None:
    """Two thousand jobs, in a process that may not grow by more than half a GiB."""
    body = tmp_path / "body.json"
    body.write_bytes(bodies(tmp_path)[name].to_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.job_extremes", str(body)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["bad"] == []
    assert found["counts"]["job"] > 500 and found["counts"]["rules"] > 50


def changed(job: Job, /, **sections: dict[str, Any]) -> bytes:
    """The job's body with other values in some sections."""
    tree = json.loads(job.to_bytes())
    for name, values in sections.items():
        tree[name] = {**tree[name], **values}
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()


def accepted(job: Job, /, **sections: dict[str, Any]) -> Job:
    """The same, in its canonical spelling and as a node takes it."""
    body = changed(job, **sections)
    return job_from_bytes(msgspec.json.decode(body, type=Job).to_bytes())


SGD = {"learning_rate": "0.5", "name": "sgd"}
TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"data": {"rows": {"ann": 10**18, "bob": 1, "cleo": 1}}}, "data.rows.ann"),
    "rows together": (
        {"data": {"rows": dict.fromkeys(("ann", "bob", "cleo"), 9 * 10**7)}},
        "270000000 rows, at most 100000000 together",
    ),
    "epochs": ({"train": {"epochs": 10**12}}, "train.epochs"),
    "classes": ({"model": {"kind": "softmax", "classes": 2**40}}, "model.classes"),
    "one wide layer": ({"model": {"kind": "mlp", "classes": 3, "hidden": [10**9]}}, "model.hidden"),
    "wide layers": (
        {"model": {"kind": "mlp", "classes": 3, "hidden": [65_536, 65_536]}},
        "4295426051 weights, at most 67108864",
    ),
    "a tiny decimal": ({"data": {"test_fraction": "1e-1000000"}}, "data.test_fraction"),
    "a huge decimal": ({"data": {"limit": "1e999999"}}, "data.limit"),
    "a long decimal": ({"data": {"limit": "1." + "3" * 1000}}, "at most 60 digits"),
    "a long whole number": ({"train": {"seed": 10**40}}, "train.seed"),
    "every epoch another rate": (
        {"train": {"epochs": 100_000, "batch_size": 60, "schedule": {"name": "cosine"}}},
        "100000 rates, at most 10000",
    ),
    "a look after every step": (
        {"train": {"epochs": 20_000, "guard": {"every": 1}}},
        "80000 times in 80000 steps",
    ),
    "a loss of every step": (
        {"train": {"epochs": 20_000}, "reveal": {"training_loss_every": 1, "least_test_rows": 5}},
        "reveal.training_loss_every",
    ),
    "many owners": ({"job": {"owners": [f"n{i}" for i in range(50_000)]}}, "job.owners"),
    "many interactions of unknown inputs": (
        {"prepare": {"interactions": [["age", "nobody"]] * 30_000}},
        "'nobody' is not an input",
    ),
    "a list of lists": ({"data": {"features": [[[[[]]]]]}}, "cannot be read"),
    "a text as long as the job": ({"job": {"name": "a" * 900_000}}, "at most 1000"),
    "an enumeration as long": ({"model": {"kind": "a" * 900_000}}, "cannot be read"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_refused_before_it_costs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections, said = TOO_MUCH[name]
    body = changed(load_job(write_job(tmp_path)), **sections)
    assert len(body) < 1 << 20
    forbid_work(monkeypatch)
    with pytest.raises(JobError, match=re.escape(said)) as caught:
        job_from_bytes(body)
    assert len(str(caught.value)) < 5_000


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes an array of rows or weights, or enumerates steps, fails."""

    def never(*arguments: object, **named: object) -> Any:
        raise AssertionError("this costs, and comes after the rules")

    for name in ("permutation", "batches", "learning_rate"):
        monkeypatch.setattr(f"mpc_train.jobs.schedule.{name}", never)
    for name in ("initial_weights", "uniform_words"):
        monkeypatch.setattr(f"mpc_train.training.first_weights.{name}", never)
    for name in ("check_network", "check_ranges"):
        monkeypatch.setattr(f"mpc_train.admission.load.{name}", never)
    monkeypatch.setattr("mpc_train.owners.table.load_table", never)


@pytest.mark.parametrize("name", [*EXAMPLES, "rich", "carried"])
def test_rules_come_before_rows_weights_and_steps(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node does until its rules have spoken makes no array, whatever the job asks for."""
    job = bodies(tmp_path)[name]
    forbid_work(monkeypatch)
    seen: list[str] = []
    events = Events(Format.text)
    monkeypatch.setattr(events, "say", seen.append)
    place = SimpleNamespace(name=job.owners[0])
    rules = Rules(("nobody",), ("nobody",), ("nobody",))
    config: Any = SimpleNamespace(place=place, rules=rules, data={}, accepted=None)
    guarded = _Guarded(
        config, Roster({}), False, events, None, audit_log(tmp_path), node_vault(tmp_path)
    )
    roles = Roles(job.owners, job.evaluators, job.dealer, job.recipients)
    with pytest.raises(RefusedError, match="breaks this node's rules"):
        guarded.prepare(job.to_bytes(), roles)
    assert job.digest().hex() in seen[0]


def test_the_most_that_is_allowed_is_little(tmp_path: Path) -> None:
    """Work after the rules, counted: rates, disclosures and shapes of a job at its bounds."""
    small = load_job(write_job(tmp_path))
    long = accepted(small, train={"epochs": 2_000_000, "optimizer": SGD})
    assert total_steps(long) == 8_000_000
    assert distinct_rates(long) == [(0, None)]
    assert disclosures(long) == frozenset()
    watched = {"epochs": 100_000, "guard": {"every": 40}, "optimizer": SGD}
    assert len(disclosures(accepted(small, train=watched))) == 10_000
    factor = "0.999999999999999999999999999999"
    schedule = {"name": "step", "every": 1, "factor": factor}
    train = {"epochs": 10_000, "schedule": schedule, "optimizer": SGD}
    stepped = accepted(small, train=train)
    last = learning_rate(stepped, 9_999)
    assert max(last.numerator.bit_length(), last.denominator.bit_length()) < 400
    assert float(last) == pytest.approx(0.5 * float(factor) ** 9_999)
    assert len(distinct_rates(stepped)) == 10_000


def test_exact_powers_stay_exact(tmp_path: Path) -> None:
    schedule = {"name": "step", "every": 2, "factor": "0.1"}
    job = accepted(load_job(write_job(tmp_path)), train={"schedule": schedule})
    assert [learning_rate(job, epoch) for epoch in range(4)] == [
        Fraction(1, 2), Fraction(1, 2), Fraction(1, 20), Fraction(1, 20)
    ]  # fmt: skip


def graph_of(*nodes: Node, shape: tuple[int, ...] = (2,)) -> Graph:
    return Graph("x", shape, nodes, nodes[-1].name, ())


def test_shapes_are_checked_without_an_element(monkeypatch: pytest.MonkeyPatch) -> None:
    before, devices = OPERATIONS["relu"], []

    def watched(net: Any, node: Any, x: Any, tensors: Any) -> Any:
        found = before(net, node, x, tensors)
        devices.append(found.device.type)
        return found

    monkeypatch.setitem(OPERATIONS, "relu", watched)
    large = (1 << 14, 1 << 14)
    dry_run(graph_of(Node("y", "relu", ("x",), large), shape=large))
    assert devices == ["meta"]


@pytest.mark.parametrize(
    "node",
    [
        Node("y", "relu", ("x",), (1,) * 50_000),
        Node("y", "relu", ("x",), (2**62, 2**62)),
        Node("y", "mean", ("x",), (2,), settings={"axes": (0,) * 100_000, "keep": False}),
        Node("y", "slice", ("x",), (2,), settings={"axis": 0, "start": 0, "stop": 2**62}),
        Node("y", "scale", ("x",), (2,), settings={"factor": "1e999999999"}),
        Node("y", "scale", ("x",), (2,), settings={"factor": "1/0"}),
    ],
    ids=lambda node: f"{node.op} {list(node.settings)}",
)
def test_a_graph_out_of_proportion_is_refused(node: Node) -> None:
    with pytest.raises(GraphError, match=r"y: |too large|NUMBER|decimal"):
        check_graph(graph_of(node))
        node.real("factor")


def test_values_between_layers_are_bounded(tmp_path: Path) -> None:
    job = carried(tmp_path)
    tree = json.loads(job.to_bytes())
    tree["model"]["network"]["graph"]["nodes"][1]["shape"] = [1 << 13, 1 << 13]
    with pytest.raises(JobError, match="values between layers per row"):
        job_from_bytes(json.dumps(tree, separators=(",", ":")).encode())


@pytest.mark.parametrize("text", ["\x1b[31mage", "age\n", "a\u202ege", "a\u200bge", "\x85age"])
@pytest.mark.parametrize("where", ["feature", "label", "column", "level", "unit", "module"])
def test_names_that_steer_a_terminal_are_refused(tmp_path: Path, text: str, where: str) -> None:
    job = load_job(ROOT / "examples" / "hospitals_rows" / "job.toml")
    tree = json.loads(job.to_bytes())
    column = tree["data"]["table"]["columns"][0]
    if where == "label":
        tree["data"]["label"] = text
    elif where == "feature":
        tree["data"]["features"] = [text]
    elif where == "module":
        tree["model"]["module"] = text
    else:
        key = {"column": "name", "level": "levels", "unit": "unit"}[where]
        column[key] = [text] if where == "level" else text
    with pytest.raises(JobError, match=r"contains U\+[0-9A-F]{4}, which is invisible") as caught:
        job_from_bytes(json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode())
    assert hidden(str(caught.value)) is None
    with pytest.raises(JobProblem, match="is invisible"):
        check_schema(Schema((Column(text, "number"),)))


def test_tables_grow_with_what_is_there(tmp_path: Path) -> None:
    """A job says how many rows there are; memory is for those that come."""
    filling = Filling(Faults("table.csv"), 1000, 10**8)
    assert filling._values.nbytes < 1 << 30
    for start in range(0, 200_000, 50_000):
        filling.begin(np.arange(start, start + 50_000))
    assert len(filling._values) < 400_000
    few = Filling(Faults("table.csv"), 2, 70_000)
    for _ in range(3):
        few.begin(np.arange(70_000))
    assert len(few._values) == 70_000
    assert few.read == 210_000


def test_own_rows_are_counted_owner_by_owner(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    assert held_out_sizes(job) == {name: len(held_out_of(job, name)) for name in job.owners}
    text = replaced('"auc"]', '"auc"]\nper_party = ["accuracy"]\nleast_test_rows = 12')
    with pytest.raises(
        JobError, match=r"job\.toml:\d+: reveal\.per_party: (ann|bob|cleo) has fewer"
    ):
        load_job(write_job(tmp_path, text))


@pytest.mark.parametrize("name", [*EXAMPLES, "rich", "carried"])
def test_what_a_run_reveals_may_stand_in_a_summary(tmp_path: Path, name: str) -> None:
    job = bodies(tmp_path)[name]
    assert {output.name for output in agreed_outputs(job)} <= set(leaving(job))
