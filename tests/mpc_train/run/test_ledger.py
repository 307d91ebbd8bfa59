"""The ledger of a run: every output of a job has a key that lists it, and an audience."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import JobError
from mpc_train.jobs.outputs import clause
from mpc_train.run.phases.ledger import RunLedger
from mpc_train.run.phases.prepare import agreed_outputs
from parties.agreement.contract import Roles
from parties.agreement.session import Session
from parties.audit.entries import Kind, Value
from protocols.shares.reveal import Output
from tests.support.jobs import changed, loaded, write_job

ROOT = Path(__file__).resolve().parents[3]
JOBS = sorted(ROOT.glob("examples/*/*job*.toml"))
SID = bytes(range(32))

Heard = list[tuple[Kind, Mapping[str, Value]]]


def session(me: str, heard: Heard, roles: Roles) -> Session:
    none = cast(Any, None)
    return Session(
        me,
        SID,
        roles,
        none,
        none,
        {},
        Path(),
        {},
        on_record=lambda kind, fields: heard.append((kind, fields)),
        on_mac=lambda data: f"mac of {len(data)} bytes, of {SID in data}",
    )


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.parent.name)
def test_every_output_of_the_examples_has_its_key(path: Path) -> None:
    try:
        job = load_job(path)
    except JobError as error:
        pytest.skip(str(error)[:60])
    for output in {one.name for one in agreed_outputs(job)}:
        head = clause(job, output).split(".")[0]
        assert head in {"job", "data", "prepare", "train", "reveal"}, output


def test_there_are_examples() -> None:
    assert len(JOBS) >= 6


def test_the_keys_are_those_that_list_the_output(tmp_path: Path) -> None:
    text = changed(
        (
            'metrics = ["accuracy", "auc"]',
            'metrics = ["accuracy", "auc"]\ntraining_loss_every = 2',
        ),
        ("batch_size = 16", "batch_size = 20"),
    )
    job = loaded(tmp_path, text)
    found = {output.name: clause(job, output.name) for output in agreed_outputs(job)}
    assert found["accuracy"] == "reveal.metrics"
    assert clause(job, "accuracy@ann") == "reveal.per_party"
    assert found["training_loss"] == "reveal.training_loss_every"
    assert found["range"] == "train.guard"
    assert found["weight"] == "job.recipients"
    with pytest.raises(RuntimeError, match="no key of the job lists what leaves as secret"):
        clause(job, "secret")


def test_an_entry_says_what_to_whom_and_how_many(tmp_path: Path) -> None:
    heard: Heard = []
    job = load_job(write_job(tmp_path))
    roles = Roles(job.owners, job.evaluators, job.dealer, job.recipients)
    ledger = RunLedger(session("ann", heard, roles), job)
    ledger.opening(Output("weight", 7), 2)
    ledger.opened(Output("weight", 7), np.array([1, -1]))
    ledger.refused(Output("bias", 1))
    assert heard == [
        (
            Kind.OPENING,
            {
                "output": "weight",
                "step": 7,
                "to": job.recipients,
                "clause": "job.recipients",
                "values": 2,
            },
        ),
        (
            Kind.OPENED,
            # The session's id and the words, as fields with their lengths before them.
            {"output": "weight", "step": 7, "digest": "mac of 67 bytes, of True"},
        ),
        (Kind.OPENING_REFUSED, {"output": "bias", "step": 1}),
    ]
    assert heard[1][1] != {"digest": "1"}


def test_sizes_of_joins_are_openings(tmp_path: Path) -> None:
    job = load_job(ROOT / "examples" / "credit_columns" / "job.toml")
    heard: Heard = []
    roles = Roles(job.owners, job.evaluators, job.dealer, job.recipients)
    ledger = RunLedger(session(job.owners[0], heard, roles), job)
    ledger.linking()
    ledger.linked(700)
    openings = [fields for kind, fields in heard if kind is Kind.OPENING]
    assert {fields["clause"] for fields in openings} == {"data.join"}
    assert openings[0]["to"] == job.names
    assert "how many records all owners have in common" in {f["output"] for f in openings}
    kind, fields = heard[-1]
    assert kind is Kind.OPENED and fields["output"] == "joined" and "700" not in str(fields)
