"""Jobs, nodes' own files, policies and approvals, networks, and what comes out of a run."""

from __future__ import annotations

import json
from datetime import date
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save as save_tensors

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.admission.policy import read_policy, read_signatures
from mpc_train.checkpoints.keeper import place_of, token_of
from mpc_train.checkpoints.state import Entry, Position, State
from mpc_train.commands.local.children import record_of
from mpc_train.commands.local.script_node import NodeFile
from mpc_train.commands.table_options import given_source
from mpc_train.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    JobError,
    ModelError,
)
from mpc_train.jobs.job import Job
from mpc_train.networks.carried import read_model
from mpc_train.node.provenance import verify_record, verify_sealed
from mpc_train.node.summary import read_summary
from mpc_train.results.artifact import MODEL, contents_of, envelope_info
from mpc_train.results.contribution import contributed
from mpc_train.results.opening import open_model
from mpc_train.results.outcome import check, outcome_of, read_outcome
from mpc_train.results.predicting import load_predictor
from mpc_train.run.approval import ApprovalError, Approvals, approve
from mpc_train.run.local import local_rules
from mpc_train.run.node_config import load_any_config, load_coordinator_config, load_node_config
from mpc_train.shared.agreeing import outline_of, read_outline
from mpc_train.shared.brought import PREPARATION_FILE, load_statistics
from mpc_train.shared.description import Description
from mpc_train.shared.share import About, ModelShare, Public, expected_shapes
from mpc_train.training.warm_start import load_start
from parties.errors import RosterError
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from protocols.canonical import pack
from protocols.errors import EnvelopeError
from protocols.sealing.bundle import pack_bundle
from protocols.sealing.envelope import seal_envelope
from tests.fuzz.parser import Parser
from tests.fuzz.tables import in_file as in_table_file
from tests.mpc_train.results.test_artifact import NODES
from tests.support.jobs import JOB, changed, replaced, write_job
from tests.support.node_files import config_of, party_toml
from tests.support.policies import policy_toml
from tests.support.private import PRIVATE
from tests.support.provenance import ledger_of, signed_record

ROOT = Path(__file__).resolve().parents[2]
FOLDER = TemporaryDirectory()
HERE = Path(FOLDER.name)
DAY = date(2030, 5, 17)
SHARES = '[reveal]\nmodel = "shares"'
SERVED = f"""
[serve]
clients = ["clinic"]
rows_a_day = 500
answer = "probability"
decimals = 2

{SHARES}
"""
in_file = in_table_file


@cache
def job_of(text: str = JOB) -> Job:
    return load_job(write_job(HERE, text))


@cache
def start_job() -> Job:
    return job_of(replaced("seed = 7", 'seed = 7\nwarm_start = { source = "ann" }'))


@cache
def tensors() -> bytes:
    shapes = start_job().shapes.items()
    return save_tensors({name: np.zeros(shape, np.float32) for name, shape in shapes})


def start(content: bytes) -> Any:
    path = HERE / "start.safetensors"
    path.write_bytes(content)
    return load_start(path, start_job())


@cache
def bringing_job() -> Job:
    prepare = '[prepare]\nmissing = "mean"\ncolumns = { age = { scale = "standard" } }'
    text = changed(
        ('recipients = ["ann", "office"]', ""),
        ("rows = { ann = 40, bob = 30, cleo = 30 }", "rows = { ann = 0, bob = 0, cleo = 0 }"),
        ("test_fraction = 0.25\n", ""),
    )
    head, _, _ = text.partition("[train]")
    start = 'warm_start = { source = "ann", prepare = "model" }'
    return job_of(f"{head}[train]\n{start}\n{SHARES}\n{prepare}\n")


@cache
def statistics() -> bytes:
    shapes = bringing_job().pipeline.shapes.items()
    return save_tensors({name: np.full(shape, 0.5) for name, shape in shapes})


def brought(content: bytes) -> Any:
    folder = HERE / "brought"
    folder.mkdir(exist_ok=True)
    (folder / PREPARATION_FILE).write_bytes(content)
    return load_statistics(folder / "model.safetensors", bringing_job())


def manifest(content: bytes) -> Any:
    folder = HERE / "opened"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(tensors())
    return load_predictor(folder)


def sealed(payload: bytes) -> bytes:
    """What ann would seal to office, whatever is in it."""
    info = envelope_info(job_of(), contents_of(job_of(), MODEL), bytes(32), "ann", ("office",))
    keys = [NODES["office"].recipient_key]
    return seal_envelope(payload, info=info, recipient_keys=keys, signer=NODES["ann"])


def opened(envelope: bytes) -> Any:
    return open_model([envelope], recipient="office", private=NODES["office"], cards=NODES)


def stated(content: bytes) -> Any:
    """A statement that an evaluator signed and sealed, whatever is in it."""
    signature = NODES["ann"].sign("mpc-train/model-statement/2", content)
    return opened(sealed(pack(content, signature, bytes(32), tensors())))


def statement(**changes: Any) -> bytes:
    said = {
        "evaluator": "ann",
        "recipients": ["office"],
        "threshold": 1,
        "contents": "model",
        "sid": bytes(32).hex(),
        "step": 16,
        "job": job_of().to_bytes().decode(),
        "metrics": {"accuracy": 0.9, "auc": None},
        "commitment": "00",
        "version": 2,
    }
    return json.dumps({**said, **changes}).encode()


def contribution(content: bytes) -> Any:
    envelopes = [sealed(b"payload")]
    return contributed([content], envelopes, me="office", private=NODES["office"], cards=NODES)


def outcome(content: bytes) -> Any:
    found = read_outcome(content)
    check(job_of(), found)
    return found


@cache
def vaults() -> dict[str, MemoryVault]:
    names = ("ann", "bob", "cleo", "office", "registry")
    return {name: MemoryVault.generate(name) for name in names}


@cache
def roster() -> Roster:
    return Roster.of([vault.card for vault in vaults().values()])


@cache
def record() -> bytes:
    return signed_record(job_of(), roster(), vaults(), bytes(32), ()).to_bytes()


def checkpoint() -> State:
    position = Position(3, False, (Entry("tensor/w", (2,)),), {"momentum": "1/2"}, 0, 3)
    return State(position, {"tensor/w": np.arange(2, dtype=np.int64)}, bytes(32))


def model_share() -> ModelShare:
    job = job_of(changed(('recipients = ["ann", "office"]', ""), ("[reveal]", SERVED)))
    shapes = expected_shapes(job)
    entries = tuple(Entry(name, shape) for name, shape in shapes.items())
    about = About(job, Public(job.to_bytes().decode(), bytes(32).hex(), entries))
    parts = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    return ModelShare(about, parts, bytes(32))


def summary(content: bytes) -> Any:
    sent = msgspec.json.decode(content, type=dict[str, Any])
    return read_summary(job_of(), "ann", sent)


def approvals(content: bytes) -> Any:
    rules = config_of(HERE, 'approvers = ["board"]').rules
    board = vaults()["office"].card
    found = Approvals(rules, "ann", job_of().digest(), DAY)
    found.add("x.approval", content, {"board": board})
    return found


def signatures(content: bytes) -> Any:
    path = HERE / "policy.toml"
    path.write_text(policy_toml())
    policy = read_policy(path)
    policy.signatures.write_bytes(content)
    return read_signatures(policy)


def options(content: bytes) -> Any:
    """An option --read KEY=VALUE."""
    return given_source(HERE / "t.csv", [content.decode("utf-8", "replace")])


def local(content: bytes) -> Any:
    (HERE / "local.toml").write_bytes(content)
    return local_rules(HERE / "job.toml")


COORDINATOR = """
node = { name = "desk" }
network = { listen = "tcp://127.0.0.1:7700" }
run = { job = "job.toml" }
"""
PARTY = party_toml(data='study = { file = "table.csv", ignore = ["x"] }')
NETWORK = """[network]
proxy = "http://ann@proxy:3128"
no_proxy = ["10.0.0.0/8"]
"""
NODE_FILE = NodeFile("a", "h", "r", "d", "s", ("a", "b"), "c", "desk")
RESULT = (ArtifactError, EnvelopeError)
PARSERS: dict[str, Parser] = {
    "job file": Parser(
        in_file("job.toml", load_job),
        lambda: [JOB.encode()],
        (JobError,),
        ("mpc_train.admission.load", "mpc_train.base.strict_toml", "mpc_train.base.toml_shape"),
    ),
    "job": Parser(
        job_from_bytes,
        lambda: [job_of().to_bytes(), job_of(PRIVATE).to_bytes()],
        (JobError,),
        ("mpc_train.admission.load",),
    ),
    "configuration": Parser(
        in_file("party.toml", load_node_config),
        lambda: [PARTY.encode(), f"{PARTY}{NETWORK}".encode()],
        (ConfigError,),
        ("mpc_train.run.node_config", "mpc_train.base.strict_toml"),
    ),
    "configuration of a coordinator": Parser(
        in_file("coordinator.toml", load_coordinator_config),
        lambda: [COORDINATOR.encode()],
        (ConfigError,),
        ("mpc_train.run.node_config",),
    ),
    "configuration of either": Parser(
        in_file("any.toml", load_any_config),
        lambda: [COORDINATOR.encode(), PARTY.encode()],
        (ConfigError,),
        ("mpc_train.run.node_config",),
    ),
    "local rules": Parser(
        local,
        lambda: [b"[rules]\n"],
        (ConfigError,),
        ("mpc_train.base.strict_toml",),
    ),
    "option of a table": Parser(
        options,
        lambda: [b'delimiter=";"', b"encoding=cp1252"],
        (ConfigError,),
        ("mpc_train.commands.table_options",),
    ),
    "policy": Parser(
        in_file("a-policy.toml", read_policy),
        lambda: [policy_toml().encode()],
        (ConfigError,),
        ("mpc_train.admission.policy",),
    ),
    "signatures of a policy": Parser(
        signatures,
        lambda: [b'{"signatures": [], "version": 1}'],
        (ConfigError,),
        ("mpc_train.admission.policy", "mpc_train.admission.statements"),
    ),
    "approval": Parser(
        approvals,
        lambda: [approve(job_of(), "board", DAY, vaults()["office"])],
        (ApprovalError,),
        ("mpc_train.run.approval", "mpc_train.admission.statements"),
    ),
    "model": Parser(
        in_file("model.json", read_model),
        lambda: [(ROOT / "examples" / "lenet" / "model.json").read_bytes()[:4000]],
        (ModelError,),
        ("mpc_train.networks.carried",),
        unread=True,
    ),
    "manifest": Parser(
        manifest,
        lambda: [
            json.dumps({"job": json.loads(job_of().to_bytes()), "model": {"file": "m"}}).encode()
        ],
        (ArtifactError,),
        ("mpc_train.results.predicting",),
        unread=True,
    ),
    "statement": Parser(
        stated, lambda: [statement()], RESULT, ("mpc_train.results.opening",), unread=True
    ),
    "envelope of a model": Parser(
        opened, lambda: [sealed(b"payload")], RESULT, ("mpc_train.results.opening",), unread=True
    ),
    "contribution": Parser(
        contribution,
        lambda: [sealed(b"payload")],
        RESULT,
        ("mpc_train.results.contribution",),
        unread=True,
    ),
    "outcome": Parser(
        outcome,
        lambda: [outcome_of(job_of(), ledger_of(job_of())).to_bytes()],
        (ArtifactError, ModelError),
        ("mpc_train.results.outcome",),
    ),
    "record": Parser(
        lambda content: verify_record(content, roster()),
        lambda: [record()],
        (ArtifactError, RosterError),
        ("mpc_train.node.provenance",),
        unread=True,
        costly=True,
    ),
    "sealed file": Parser(
        lambda content: verify_sealed(content, roster()),
        lambda: [pack_bundle(record(), [sealed(b"x")])],
        (*RESULT, RosterError),
        ("mpc_train.node.provenance",),
        unread=True,
        costly=True,
    ),
    "name of a checkpoint": Parser(
        place_of,
        lambda: [token_of(3, False, bytes(32))],
        (ArtifactError,),
        ("mpc_train.checkpoints.keeper",),
    ),
    "position of a checkpoint": Parser(
        Position.from_bytes,
        lambda: [checkpoint().position.to_bytes()],
        (ArtifactError,),
        ("mpc_train.checkpoints.state",),
    ),
    "checkpoint": Parser(
        State.from_bytes,
        lambda: [checkpoint().to_bytes()],
        (ArtifactError,),
        ("mpc_train.checkpoints.state",),
    ),
    "share of a model": Parser(
        ModelShare.from_bytes,
        lambda: [model_share().to_bytes()],
        (ArtifactError,),
        ("mpc_train.shared.share",),
    ),
    "description of a model in shares": Parser(
        Description.from_bytes,
        lambda: [Description(model_share().about.job, bytes(32).hex()).to_bytes()],
        (ArtifactError,),
        ("mpc_train.shared.description",),
    ),
    "outline of a model in shares": Parser(
        lambda content: read_outline(model_share().about.job, content),
        lambda: [msgspec.json.encode(outline_of(model_share().about.job, model_share()))],
        (ArtifactError,),
        ("mpc_train.shared.agreeing",),
    ),
    "summary": Parser(
        summary,
        lambda: [b'{"steps": 3, "rounds": 7}'],
        (ArtifactError, msgspec.MsgspecError, ValueError),
        ("mpc_train.node.summary",),
    ),
    "start": Parser(start, lambda: [tensors()], (DataError,), ("mpc_train.training.warm_start",)),
    "statistics of a model": Parser(
        brought, lambda: [statistics()], (DataError,), ("mpc_train.shared.brought",)
    ),
    "line of a child": Parser(
        lambda content: record_of(content.decode("utf-8", "replace")),
        lambda: [b'{"status": "ok"}'],
        (),
        ("mpc_train.commands.local.children",),
    ),
}
