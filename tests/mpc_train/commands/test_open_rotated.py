"""Recipients open what was sealed before their keys, or those of an evaluator, were rotated."""

import json
import re
from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from mpc_train.commands.open import contribution_of, open_file
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job
from parties.keys import lifetime
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from protocols.errors import AuthenticationError, EnvelopeError
from protocols.sealing.bundle import pack_bundle
from protocols.sealing.envelope import read_key_digests
from tests.mpc_train.results.test_artifact import METRICS, Run
from tests.support.jobs import changed, write_job

NAMES = ("ann", "bob", "cleo", "office")
VAULTS = {name: MemoryVault.generate(name) for name in NAMES}
SECOND = VAULTS["office"].successor()
THIRD = SECOND.successor()
GROUP = ("ann", "office")


def sealed(folder: Path, job: Job, office: MemoryVault) -> Path:
    """The model of a run in which `office` had this identity."""
    run, threshold = Run(job), job.reveal.threshold
    group = GROUP if threshold > 1 else ("office",)
    keys = {**{name: VAULTS[name].card for name in NAMES}, "office": office.card}
    path = folder / "model.sealed"
    envelopes = [
        run.seal(
            name,
            recipients=group,
            recipient_keys=[keys[each].recipient_key for each in group],
            signer=VAULTS[name],
        )
        for name in job.evaluators
    ]
    path.write_bytes(pack_bundle(envelopes))
    return path


def roster_now() -> Roster:
    """After two rotations of office, and one of bob, who evaluated."""
    known = Roster.of([vault.card for vault in VAULTS.values()])
    known = known.follow(VAULTS["bob"].successor().successions, lifetime.now())
    return known.follow(THIRD.successions, lifetime.now())


@pytest.mark.parametrize("office", [VAULTS["office"], SECOND, THIRD])
def test_each_identity_of_the_recipient_opens(tmp_path: Path, office: MemoryVault) -> None:
    path = sealed(tmp_path, load_job(write_job(tmp_path)), office)
    model, _ = open_file(path, THIRD, roster_now(), tmp_path / "out")
    assert model.metrics == METRICS
    stranger = MemoryVault.generate("office")
    known = Roster.of([*(VAULTS[name].card for name in NAMES[:3]), stranger.card])
    with pytest.raises(EnvelopeError, match="another key of office"):
        open_file(path, stranger, known, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def together(folder: Path) -> Job:
    return load_job(write_job(folder, changed(("[reveal]", "[reveal]\nthreshold = 2"))))


def test_recipients_open_together_after_a_rotation(tmp_path: Path) -> None:
    """Contributions are sealed to the present key: a retired one opens nothing new."""
    path, known = sealed(tmp_path, together(tmp_path), VAULTS["office"]), roster_now()
    part = tmp_path / "ann.part"
    made, consent = contribution_of(path, VAULTS["ann"], known, "office")
    part.write_bytes(made)
    assert consent.opener == "office"
    assert read_key_digests(made) == {"office": THIRD.card.recipient_key.digest}
    model, _ = open_file(path, THIRD, known, tmp_path / "out", parts=[part])
    assert model.metrics == METRICS
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recipients"] == list(GROUP)
    with pytest.raises((ArtifactError, AuthenticationError)):
        open_file(path, VAULTS["office"], known, tmp_path / "none", parts=[part])
    other, _ = contribution_of(path, THIRD, known, "ann")
    part.write_bytes(other)
    model, _ = open_file(path, VAULTS["ann"], known, tmp_path / "ann", parts=[part])
    assert model.metrics == METRICS and re.fullmatch(r"[0-9a-f]{64}", manifest["job_digest"])
