"""Sealed models: what a recipient accepts, and that every alteration is refused."""

import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch

from mpc_train.admission.load import load_job, resolved
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.sealed import sealed_tensors
from mpc_train.preparation.sealed import BITS
from mpc_train.results import artifact
from mpc_train.results.artifact import MODEL, contents_of, seal_result
from mpc_train.results.opening import MANIFEST_FILE, MODEL_FILE, OpenedModel, open_model
from protocols.canonical import pack
from protocols.errors import AuthenticationError, EnvelopeError
from protocols.sealing.envelope import open_envelope, seal_envelope
from protocols.sealing.hpke import HybridPrivateKey
from protocols.sealing.recipient_keys import (
    HYBRID,
    P384,
    P384PrivateKey,
    RecipientKey,
    RecipientPrivateKey,
)
from protocols.sealing.signatures import SigningKeys, VerifyKeys
from tests.support import columns_case
from tests.support.jobs import replaced, write_job


@dataclass
class Node:
    signing: SigningKeys = field(default_factory=SigningKeys.generate)
    private: RecipientPrivateKey = field(default_factory=HybridPrivateKey.generate)
    kind: str = HYBRID
    earlier: tuple[RecipientPrivateKey, ...] = ()
    """Keys that the present one has succeeded."""

    @property
    def recipient_keys(self) -> tuple[RecipientKey, ...]:
        return (self.recipient_key, *(RecipientKey(self.kind, key.public) for key in self.earlier))

    @property
    def recipient_key(self) -> RecipientKey:
        return RecipientKey(self.kind, self.private.public)

    def verifier(self) -> VerifyKeys:
        return VerifyKeys(self.signing.public)

    def sign(self, purpose: str, message: bytes) -> bytes:
        return self.signing.sign(purpose, message)

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        for key in self.earlier:
            with contextlib.suppress(AuthenticationError):
                return key.open(info, ciphertext)
        return self.private.open(info, ciphertext)


NAMES = ("ann", "bob", "cleo", "office", "registry", "mallory", "bank", "insurer")
NODES = {name: Node() for name in NAMES}
SID = bytes(range(32))
METRICS = {"accuracy": 0.9375, "auc": 0.97, "confusion": None}
UNAVAILABLE = {"confusion": "refused: a cell has rows, but fewer than 10"}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return load_job(write_job(tmp_path))


class Run:
    """The evaluators' ends of one run, with weights that are known."""

    def __init__(self, job: Job, sid: bytes = SID, seed: int = 0) -> None:
        self.job, self.sid = job, sid
        generator = np.random.default_rng(seed)

        def draw(shape: tuple[int, ...]) -> np.ndarray:
            return generator.integers(-(2**63), 2**63, shape, dtype=np.int64)

        self.weights = {
            name: generator.normal(0, 3, shape) for name, shape in sealed_tensors(job).items()
        }
        encoded = {
            name: np.round(value * 2.0 ** BITS.get(name, 20)).astype(np.int64)
            for name, value in self.weights.items()
        }
        self.masks = {
            evaluator: {name: draw(shape) for name, shape in sealed_tensors(job).items()}
            for evaluator in job.evaluators
        }
        total = {
            name: sum((mask[name] for mask in self.masks.values()), np.zeros(shape, np.int64))
            for name, shape in sealed_tensors(job).items()
        }
        self.delta = {name: encoded[name] + total[name] for name in sealed_tensors(job)}

    def seal(self, me: str, recipient: str = "office", **changes: object) -> bytes:
        arguments: dict[str, object] = {
            "sid": self.sid,
            "me": me,
            "recipients": (recipient,),
            "recipient_keys": [NODES[recipient].recipient_key],
            "delta": self.delta,
            "mask": self.masks[me],
            "metrics": METRICS,
            "unavailable": UNAVAILABLE,
            "signer": NODES[me],
        }
        contents = contents_of(self.job, MODEL)
        return seal_result(self.job, contents, **{**arguments, **changes})  # type: ignore[arg-type]

    def envelopes(self, recipient: str = "office") -> list[bytes]:
        return [self.seal(name, recipient) for name in self.job.evaluators]


def opened(
    envelopes: list[bytes], recipient: str = "office", job: Job | None = None
) -> OpenedModel:
    return open_model(
        envelopes, recipient=recipient, private=NODES[recipient], cards=NODES, job=job
    )


def test_a_recipient_gets_the_weights_and_the_metrics(job: Job) -> None:
    run = Run(job)
    for given in (None, job):
        model = opened(run.envelopes(), job=given)
        assert model.job == job
        assert (model.metrics, model.unavailable) == (METRICS, UNAVAILABLE)
        for name, value in run.weights.items():
            assert np.abs(model.weights[name] - value).max() <= 2.0**-21


def test_plain_pytorch_loads_the_file(tmp_path: Path, job: Job) -> None:
    run = Run(job)
    path = tmp_path / MODEL_FILE
    path.write_bytes(opened(run.envelopes()).files[MODEL_FILE])
    module = torch.nn.Linear(2, 1)
    module.load_state_dict(safetensors.torch.load_file(path))
    assert np.allclose(module.weight.detach().numpy(), run.weights["weight"], atol=1e-5)


def test_the_manifest_can_be_verified_by_others(job: Job) -> None:
    model = opened(Run(job).envelopes())
    manifest = json.loads(model.files[MANIFEST_FILE])
    assert manifest["job_digest"] == job.digest().hex()
    assert manifest["sid"] == SID.hex()
    assert (manifest["metrics"], manifest["unavailable"]) == (METRICS, UNAVAILABLE)
    assert manifest["tensors"] == {"weight": [1, 2], "bias": [1]}
    assert [entry["evaluator"] for entry in manifest["statements"]] == ["ann", "bob", "cleo"]
    for entry in manifest["statements"]:
        NODES[entry["evaluator"]].verifier().verify(
            artifact.PURPOSE, entry["statement"].encode(), base64.b64decode(entry["signature"])
        )


def test_the_manifest_holds_no_hash_of_weights(job: Job) -> None:
    """Sealing the same model twice gives other commitments and another model HMAC."""
    run = Run(job)
    one, other = (json.loads(opened(run.envelopes()).files[MANIFEST_FILE]) for _ in range(2))
    assert one["model"]["hmac_sha256"] != other["model"]["hmac_sha256"]
    commitments = {
        json.loads(entry["statement"])["commitment"]
        for manifest in (one, other)
        for entry in manifest["statements"]
    }
    assert len(commitments) == 6


def test_the_manifest_says_what_the_model_was_sealed_to(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads(opened(Run(job).envelopes()).files[MANIFEST_FILE])
    assert manifest["recipient_key"]["post_quantum"] is True
    node = Node(private=P384PrivateKey.generate(), kind=P384)
    monkeypatch.setitem(NODES, "office", node)
    manifest = json.loads(opened(Run(job).envelopes()).files[MANIFEST_FILE])
    assert manifest["recipient_key"] == {
        "kind": "p384",
        "suite": "P384/HKDF-SHA384/AES-256-GCM",
        "post_quantum": False,
    }


def test_a_missing_envelope_is_named(job: Job) -> None:
    envelopes = Run(job).envelopes()
    with pytest.raises(ArtifactError, match="the envelope of bob is missing"):
        opened([envelopes[0], envelopes[2]])
    with pytest.raises(ArtifactError, match="no envelope"):
        open_model([], recipient="office", private=NODES["office"], cards=NODES)


def test_a_doubled_envelope_is_named(job: Job) -> None:
    envelopes = Run(job).envelopes()
    with pytest.raises(ArtifactError, match="two envelopes of ann"):
        opened([*envelopes, envelopes[0]])


def test_envelopes_of_two_runs_do_not_mix(job: Job) -> None:
    one, other = Run(job).envelopes(), Run(job, sid=bytes(32)).envelopes()
    with pytest.raises(ArtifactError, match="different runs"):
        opened([one[0], other[1], one[2]])


def test_one_evaluator_who_deviates_is_named(job: Job) -> None:
    run = Run(job)
    altered = {**run.delta, "bias": run.delta["bias"] + 1}
    with pytest.raises(ArtifactError, match="cleo sealed different masked values from ann"):
        opened([run.seal("ann"), run.seal("bob"), run.seal("cleo", delta=altered)])


def test_other_metrics_are_refused(job: Job) -> None:
    run = Run(job)
    with pytest.raises(ArtifactError, match="cleo states different metrics"):
        opened([run.seal("ann"), run.seal("bob"), run.seal("cleo", metrics={"accuracy": 1.0})])
    with pytest.raises(ArtifactError, match="cleo states different metrics"):
        opened([run.seal("ann"), run.seal("bob"), run.seal("cleo", unavailable={})])


def test_an_envelope_opens_for_its_recipient_only(job: Job) -> None:
    envelopes = Run(job).envelopes("ann")
    assert opened(envelopes, "ann").metrics == METRICS
    with pytest.raises(ArtifactError, match="an envelope for ann;"):
        opened(envelopes, "office")
    with pytest.raises(EnvelopeError):
        open_model(envelopes, recipient="ann", private=NODES["bob"], cards=NODES)
    with pytest.raises(ArtifactError, match="does not seal its model to mallory"):
        Run(job).seal("ann", "mallory")


@pytest.mark.parametrize("late", [(), ("ann",), ("ann", "bob")])
def test_a_rotation_of_the_recipient_at_the_end_loses_no_model(
    job: Job, late: tuple[str, ...]
) -> None:
    """Some evaluators may have sealed to the old key, others to the new one."""
    old, new = NODES["office"], Node()
    run = Run(job)
    envelopes = [
        run.seal(name, recipient_keys=[(new if name in late else old).recipient_key])
        for name in job.evaluators
    ]
    after = Node(new.signing, new.private, earlier=(old.private,))
    cards = {**NODES, "office": after}
    model = open_model(envelopes, recipient="office", private=after, cards=cards)
    assert model.metrics == METRICS
    with pytest.raises(EnvelopeError, match="another key of office"):
        stranger = {**NODES, "office": Node()}
        open_model(envelopes, recipient="office", private=after, cards=stranger)


def test_every_altered_byte_is_refused(job: Job) -> None:
    envelopes = Run(job).envelopes()
    generator = np.random.default_rng(5)
    for position in [0, 30, *generator.integers(0, len(envelopes[1]), 40), -1]:
        altered = bytearray(envelopes[1])
        altered[position] ^= 1 << int(generator.integers(8))
        with pytest.raises((ArtifactError, EnvelopeError)):
            opened([envelopes[0], bytes(altered), envelopes[2]])


def test_an_unknown_sender_is_refused(job: Job) -> None:
    cards = {name: node for name, node in NODES.items() if name != "bob"}
    with pytest.raises(ArtifactError, match="no card of bob, an evaluator"):
        open_model(Run(job).envelopes(), recipient="office", private=NODES["office"], cards=cards)


def test_a_sender_who_did_not_sign_is_refused(job: Job) -> None:
    run = Run(job)
    forged = run.seal("bob", signer=NODES["mallory"])
    with pytest.raises(EnvelopeError, match="bob did not sign"):
        opened([run.seal("ann"), forged, run.seal("cleo")])


def test_somebody_who_did_not_evaluate_is_refused(job: Job, tmp_path: Path) -> None:
    run = Run(job)
    run.masks["mallory"] = run.masks["ann"]
    with pytest.raises(ArtifactError, match="mallory, who did not evaluate"):
        opened([*run.envelopes(), run.seal("mallory")])


def test_another_job_is_refused(job: Job, tmp_path: Path) -> None:
    other = load_job(write_job(tmp_path, replaced("seed = 7", "seed = 8")))
    both = f"{job.digest().hex()}; expected study, digest {other.digest().hex()}"
    with pytest.raises(ArtifactError, match=f"job study, digest {both}"):
        opened(Run(job).envelopes(), job=other)
    with pytest.raises(ArtifactError, match="another job"):
        opened([*Run(job).envelopes()[:2], Run(other).seal("cleo")])


def test_a_linked_job_opens_with_its_file(tmp_path: Path) -> None:
    """How many rows were joined is known in a run only, and does not make it another job."""
    written = load_job(columns_case.write_job(tmp_path))
    run = Run(resolved(written, 33))
    assert total_steps(run.job) != total_steps(written)
    for given in (written, run.job, None):
        model = opened(run.envelopes("bank"), "bank", given)
        assert model.job.data.joined == 33
    other = load_job(columns_case.write_job(tmp_path, "nobody"))
    with pytest.raises(ArtifactError, match=f"expected credit, digest {other.digest().hex()}"):
        opened(run.envelopes("bank"), "bank", other)


def test_a_signed_job_that_is_not_what_was_sealed_is_refused(job: Job, tmp_path: Path) -> None:
    """The envelope's own words are believed no more than with a job in hand."""
    longer = load_job(write_job(tmp_path, replaced("epochs = 4", "epochs = 5")))
    run = Run(job)
    forged = artifact.envelope_info(longer, contents_of(longer, MODEL), SID, "bob", ("office",))
    blob = run.seal("bob")
    payload = open_payload(blob, job)
    sealed = seal_envelope(
        payload, info=forged, recipient_keys=[NODES["office"].recipient_key], signer=NODES["bob"]
    )
    with pytest.raises(ArtifactError, match="statement of bob does not fit its envelope"):
        opened([run.seal("ann"), sealed, run.seal("cleo")], job=job)


def open_payload(blob: bytes, job: Job) -> bytes:
    return open_envelope(
        blob,
        expected=artifact.envelope_info(job, contents_of(job, MODEL), SID, "bob", ("office",)),
        recipient_keys=[NODES["office"].recipient_key],
        private=NODES["office"],
        verifier=NODES["bob"].verifier(),
    )


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("delta", lambda tensors: {"weight": tensors["weight"]}),
        ("mask", lambda tensors: {**tensors, "extra": tensors["bias"]}),
        ("mask", lambda tensors: {**tensors, "weight": tensors["weight"].reshape(2, 1)}),
        ("delta", lambda tensors: {**tensors, "bias": tensors["bias"].astype(np.float64)}),
    ],
)
def test_other_names_shapes_and_types_are_not_sealed(
    job: Job, kind: str, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> None:
    run = Run(job)
    tensors = run.delta if kind == "delta" else run.masks["ann"]
    with pytest.raises(ArtifactError, match=f"{kind} of ann"):
        run.seal("ann", "office", **{kind: change(tensors)})


def forged_payload(run: Run, **changes: object) -> bytes:
    """An envelope of cleo, correctly signed and sealed, around a payload of cleo's making."""
    blob = artifact.save_tensors(
        changes.pop("tensors", None)  # type: ignore[arg-type]
        or {
            **{f"delta.{name}": value for name, value in run.delta.items()},
            **{f"mask.{name}": value for name, value in run.masks["cleo"].items()},
        }
    )
    key = bytes(32)
    fields: dict[str, object] = {
        "evaluator": "cleo",
        "recipients": ["office"],
        "threshold": 1,
        "contents": "model",
        "sid": SID.hex(),
        "step": artifact.total_steps(run.job),
        "job": run.job.to_bytes().decode(),
        "metrics": METRICS,
        "unavailable": UNAVAILABLE,
        "commitment": artifact.commit(key, blob),
        "version": 2,
    }
    signer = NODES["cleo"]
    text = msgspec.json.encode({**fields, **changes}, order="deterministic")
    payload = pack(text, signer.sign(artifact.PURPOSE, text), key, blob)
    return seal_envelope(
        payload,
        info=artifact.envelope_info(run.job, contents_of(run.job, MODEL), SID, "cleo", ("office",)),
        recipient_keys=[NODES["office"].recipient_key],
        signer=signer,
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"evaluator": "bob"}, "does not fit its envelope"),
        ({"recipients": ["ann"]}, "does not fit its envelope"),
        ({"threshold": 2}, "does not fit its envelope"),
        ({"sid": "00" * 32}, "does not fit its envelope"),
        ({"step": 3}, "does not fit its envelope"),
        ({"version": 1}, "does not fit its envelope"),
        ({"commitment": "00" * 32}, "not about the tensors"),
        ({"job": "{}"}, "proposed job"),
        ({"surprise": 1}, "malformed"),
        ({"tensors": {"delta.weight": np.zeros(1, np.int64)}}, "the tensors are not those"),
        ({"tensors": {"gamma.weight": np.zeros(1, np.int64)}}, "does not know"),
    ],
)
def test_an_evaluator_cannot_seal_something_else(
    job: Job, changes: dict[str, object], says: str | None
) -> None:
    run = Run(job)
    envelopes = [run.seal("ann"), run.seal("bob"), forged_payload(run, **changes)]
    if says is None:
        assert opened(envelopes).metrics == METRICS
        return
    with pytest.raises(ArtifactError, match=says):
        opened(envelopes)


def test_errors_and_reprs_show_no_number(job: Job) -> None:
    run = Run(job)
    model = opened(run.envelopes())
    assert repr(model) == "OpenedModel(study, 2 tensors)"


def test_weights_of_an_earlier_step_are_not_the_model(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mpc_train.results.artifact.total_steps", lambda _: 0)
        early = Run(job).envelopes()
    with pytest.raises(ArtifactError, match="ann is not of the last step"):
        opened(early)
