"""k of n recipients open a model together; k - 1 of them, and what does not belong, do not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.results import artifact
from mpc_train.results.artifact import MODEL, Contents, contents_of
from mpc_train.results.contribution import contribute
from mpc_train.results.opening import MANIFEST_FILE, OpenedModel, open_model
from protocols.canonical import pack
from protocols.errors import EnvelopeError
from protocols.sealing.bundle import pack_bundle
from protocols.sealing.envelope import EnvelopeInfo, read_info, seal_envelope
from tests.mpc_train.results.test_artifact import METRICS, NODES, Run, forged_payload
from tests.support.jobs import changed, write_job

GROUP = ("ann", "office", "bank")


def together(tmp_path: Path, threshold: int = 2) -> Job:
    reveal = f"[reveal]\nthreshold = {threshold}"
    text = changed(('"office"]', '"office", "bank"]'), ("[reveal]", reveal))
    path = write_job(tmp_path, text)
    return load_job(path)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return together(tmp_path)


def sealed(job: Job, **changes: object) -> bytes:
    """The one file of all recipients."""
    run = Run(job, **changes)  # type: ignore[arg-type]
    keys = [NODES[name].recipient_key for name in GROUP]
    return pack_bundle(
        b"", [run.seal(name, recipients=GROUP, recipient_keys=keys) for name in job.evaluators]
    )


def part(blob: bytes, name: str, opener: str = "ann", subject: str | None = None) -> bytes:
    made, _ = contribute(
        blob, me=name, private=NODES[name], cards=NODES, opener=opener, subject=subject
    )
    return made


def opened(blob: bytes, *parts: bytes, me: str = "ann", job: Job | None = None) -> OpenedModel:
    return open_model(
        blob, recipient=me, private=NODES[me], cards=NODES, job=job, contributions=parts
    )


def test_two_of_three_open_the_model(job: Job) -> None:
    blob = sealed(job)
    for opener, other in (("ann", "bank"), ("bank", "office"), ("office", "ann")):
        model = opened(blob, part(blob, other, opener), me=opener, job=job)
        assert model.metrics == METRICS
        manifest = json.loads(model.files[MANIFEST_FILE])
        assert (manifest["recipients"], manifest["threshold"]) == (list(GROUP), 2)
    everybody = opened(blob, part(blob, "bank"), part(blob, "office"))
    assert everybody.metrics == METRICS


def test_fewer_open_nothing(tmp_path: Path) -> None:
    job = together(tmp_path, 3)
    blob = sealed(job)
    for parts in ((), (part(blob, "bank"),)):
        with pytest.raises(ArtifactError, match=r"3 of ann, office, bank together open this file"):
            opened(blob, *parts)
    assert opened(blob, part(blob, "bank"), part(blob, "office")).job == job


def test_what_a_contributor_agrees_to(job: Job) -> None:
    blob = sealed(job)
    _, consent = contribute(blob, me="bank", private=NODES["bank"], cards=NODES, opener="ann")
    assert consent.about == f"the model of job study, digest {job.digest().hex()}"
    assert (consent.opener, consent.threshold, consent.recipients) == ("ann", 2, GROUP)
    assert part(blob, "bank", subject=contents_of(job, MODEL).subject(job))
    with pytest.raises(ArtifactError, match="expected the model of job other"):
        part(blob, "bank", subject="the model of job other")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda blob, job: [part(blob, "bank")] * 2, "two contributions of bank"),
        (lambda blob, job: [part(blob, "bank", "office")], "is for office to open it, not for ann"),
        (
            lambda blob, job: [part(sealed(job, sid=bytes(32)), "bank")],
            "bank is to another sealed file",
        ),
        (lambda blob, job: [part(sealed(job), "bank")], "bank is to another sealed file"),
        (lambda blob, job: [part(blob, "ann", "bank")], "a contribution of 'ann'"),
        (lambda blob, job: [blob], "not a contribution"),
        (lambda blob, job: [part(blob, "bank")[:-1]], "not a contribution"),
    ],
)
def test_contributions_that_do_not_belong_are_named(
    job: Job, change: Callable[[bytes, Job], list[bytes]], says: str
) -> None:
    blob = sealed(job)
    with pytest.raises(ArtifactError, match=says):
        opened(blob, *change(blob, job))


def test_every_altered_byte_of_a_contribution_is_refused(job: Job) -> None:
    blob = sealed(job)
    good = part(blob, "bank")
    for position in [*range(0, len(good), 97), len(good) - 1]:
        altered = bytearray(good)
        altered[position] ^= 4
        with pytest.raises((ArtifactError, EnvelopeError)):
            opened(blob, bytes(altered))


def forged(blob: bytes, payload: bytes, signer: str = "bank") -> bytes:
    """A contribution of bank around another payload."""
    return seal_envelope(
        payload,
        info=read_info(part(blob, "bank")),
        recipient_keys=[NODES["ann"].recipient_key],
        signer=NODES[signer],
    )


def test_wrong_shares_are_named(job: Job) -> None:
    blob = sealed(job)
    names = [name.encode() for name in ("ann", "bob", "cleo")]
    wrong = [field for name in names for field in (name, bytes(33))]
    with pytest.raises(EnvelopeError, match="the share of bank is not the one"):
        opened(blob, forged(blob, pack(*wrong)))
    for payload in (pack(*wrong[:4]), pack(*wrong[:5]), pack(*wrong, *wrong[:2]), b"x"):
        with pytest.raises(ArtifactError, match="the contribution of bank"):
            opened(blob, forged(blob, payload))
    with pytest.raises(ArtifactError, match="bank: an envelope that bank did not sign"):
        opened(blob, forged(blob, pack(*wrong), signer="mallory"))


def test_contributions_are_refused_where_nobody_needs_them(tmp_path: Path) -> None:
    run = Run(load_job(write_job(tmp_path)))
    alone = pack_bundle(b"", run.envelopes("ann"))
    with pytest.raises(ArtifactError, match="ann can open this file without contributions"):
        part(alone, "ann", "office")
    with pytest.raises(ArtifactError, match="opens this file alone; leave out --with"):
        opened(alone, part(sealed(together(tmp_path)), "bank"))


def test_names_that_are_no_recipients_cannot_take_part(job: Job) -> None:
    blob = sealed(job)
    for me, opener, says in (
        ("mallory", "ann", "mallory, this identity, is not a recipient"),
        ("bank", "mallory", "mallory, the opener, is not a recipient"),
        ("bank", "bank", "cannot contribute to itself"),
    ):
        with pytest.raises(ArtifactError, match=says):
            contribute(blob, me=me, private=NODES[me], cards=NODES, opener=opener)
    cards = {name: node for name, node in NODES.items() if name != "office"}
    with pytest.raises(ArtifactError, match="no card of office, a recipient"):
        contribute(blob, me="bank", private=NODES["bank"], cards=cards, opener="ann")


def test_evaluators_cannot_lower_the_threshold(job: Job, tmp_path: Path) -> None:
    """What an evaluator seals must be sealed to whom the job says, as the job says."""
    lower = together(tmp_path, 3)
    keys = [NODES[name].recipient_key for name in GROUP]
    run = Run(job)
    envelopes = [run.seal(name, recipients=GROUP, recipient_keys=keys) for name in job.evaluators]
    other = Run(lower).seal("cleo", recipients=GROUP, recipient_keys=keys)
    with pytest.raises(ArtifactError, match="different models"):
        part(pack_bundle(b"", [*envelopes[:2], other]), "bank")
    with pytest.raises(ArtifactError, match="does not seal its model to ann"):
        run.seal("ann", "ann")


def test_an_evaluator_cannot_seal_to_one_recipient_alone(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(
        job: Job, contents: Contents, sid: bytes, me: str, recipients: tuple[str, ...]
    ) -> EnvelopeInfo:
        names, subject = tuple(contents.shapes), contents.subject(job)
        return EnvelopeInfo(subject, sid, total_steps(job), names, me, recipients)

    monkeypatch.setattr(artifact, "envelope_info", alone)
    blob = pack_bundle(b"", [forged_payload(Run(job))])
    with pytest.raises(ArtifactError, match="cleo sealed to other recipients together than"):
        opened(blob, me="office")


def test_envelopes_to_different_recipients_are_not_opened_together(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others(
        job: Job, contents: Contents, sid: bytes, me: str, recipients: tuple[str, ...]
    ) -> EnvelopeInfo:
        subject, names = contents.subject(job), tuple(contents.shapes)
        to = ("ann", "office", "bob")
        return EnvelopeInfo(subject, sid, total_steps(job), names, me, to, contents.threshold)

    keys = [NODES[name].recipient_key for name in GROUP]
    run = Run(job)
    envelopes = [run.seal(name, recipients=GROUP, recipient_keys=keys) for name in job.evaluators]
    monkeypatch.setattr(artifact, "envelope_info", others)
    keys = [NODES[name].recipient_key for name in ("ann", "office", "bob")]
    envelopes[-1] = run.seal("cleo", recipients=GROUP, recipient_keys=keys)
    helped = part(pack_bundle(b"", envelopes[:2]), "bank")
    with pytest.raises(ArtifactError, match="of different models"):
        opened(pack_bundle(b"", envelopes), helped)


def test_whoever_is_no_recipient_contributes_nothing(job: Job) -> None:
    blob = sealed(job)
    names = [name.encode() for name in ("ann", "bob", "cleo")]
    shares = pack(*(field for name in names for field in (name, bytes(33))))
    made = seal_envelope(
        shares,
        info=replace(read_info(part(blob, "bank")), sender="mallory"),
        recipient_keys=[NODES["ann"].recipient_key],
        signer=NODES["mallory"],
    )
    with pytest.raises(ArtifactError, match="a contribution of 'mallory'; contributions come from"):
        opened(blob, made)
