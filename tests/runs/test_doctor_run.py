"""A coordinator answers doctors while it gathers nodes and while they run, and the run goes on."""

import time

import pytest

from parties.agreement.contract import CONTRACT_VERSION
from parties.doctor.findings import Level
from parties.wire.zmq_transport import CurveKeys
from tests.support.doctors import found
from tests.support.local_run import LocalRun
from tests.support.patience import PATIENCE_S


@pytest.mark.slow
def test_a_coordinator_answers_before_and_during_a_run(local_run: LocalRun) -> None:
    local_run.coordinator()
    keys = {
        name: CurveKeys(local_run.keys[name].curve_public, local_run.keys[name].curve_secret)
        for name in ("alice", "coordinator")
    }

    def examined() -> dict[str, Level]:
        findings = found(
            local_run.address,
            keys=keys["alice"],
            expected=keys["coordinator"],
            version=CONTRACT_VERSION,
        )
        return {check: finding.level for check, finding in findings.items()}

    before = examined()
    assert before == dict.fromkeys(
        ("key", "release", "clock", "round trip", "sending", "receiving"), Level.passed
    )
    local_run.nodes({"rounds": 1500, "pause": 0.002})
    deadline = time.monotonic() + PATIENCE_S
    while "rate" not in (during := examined()):
        assert time.monotonic() < deadline, "no run was seen under way"
    assert during["rate"] is Level.skipped and during["round trip"] is Level.passed
    results = local_run.results()
    for name, result in results.items():
        assert result["status"] == 0, (name, result)
