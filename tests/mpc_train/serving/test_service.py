"""What the nodes of a service sign: bad ones are refused before anything is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from mpc_train.errors import ArtifactError, JobError, RefusedError
from mpc_train.serving.program import ServeProgram
from mpc_train.serving.service import Agreed, Body
from mpc_train.shared.description import Description
from tests.mpc_train.serving.test_program import CLASSES, job_of
from tests.support.served import SID, shares_of, some_weights


@pytest.fixture
def described(tmp_path: Path) -> Description:
    return Description(job_of(tmp_path), SID.hex())


def test_a_service_is_for_whom_a_models_owners_allow(described: Description) -> None:
    assert Agreed.of("house", [described]).roles.clients == ("clinic", "practice")
    assert Agreed.of("house", [described], ["clinic"]).roles.clients == ("clinic",)
    for clients, said in (
        (("clinic", "mallory"), "no model's owners allow mallory to ask"),
        (("clinic", "clinic"), "each of them once"),
    ):
        with pytest.raises(JobError, match=said):
            Agreed.of("house", [described], clients)
    body = Body("house", (described.to_bytes().decode(),), ())
    with pytest.raises(JobError, match="it needs clients"):
        Agreed.from_bytes(msgspec.json.encode(body))


def test_the_log_names_no_client_that_was_left_out(
    described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed, noted = Agreed.of("house", [described]), dict[str, Any]()
    roles = agreed.roles.without({"clinic"})
    program = ServeProgram("registry", None)
    program.prepare(agreed.to_bytes(), roles)
    monkeypatch.setattr(program, "_serve", lambda *_: None)
    session = SimpleNamespace(
        roles=roles, record=lambda kind, **fields: noted.update(fields), is_evaluator=False
    )
    program.run(cast(Any, session))
    assert noted == {"models": (described.digest,), "clients": ("practice",)}


def test_all_faults_are_named_at_once(tmp_path: Path, described: Description) -> None:
    other = Description(job_of(tmp_path / "three", 3), SID.hex())
    job = job_of(tmp_path / "none", text=CLASSES)
    unasked = Description(msgspec.structs.replace(job, serve=None), SID.hex())
    with pytest.raises(JobError) as found:
        Agreed.of("", [described, described, other, unasked])
    for said in ("the name is empty", "listed twice", "other evaluators", "allowed nobody to ask"):
        assert said in str(found.value)
    for bad in (b"", b"{}", b"[]", msgspec.json.encode(Body("house", ("none",), ("clinic",)))):
        with pytest.raises(JobError, match="not the body of a service"):
            Agreed.from_bytes(bad)
    with pytest.raises(JobError, match="it serves 0 models"):
        Agreed.from_bytes(msgspec.json.encode(Body("house", (), ("clinic",))))


def test_a_node_refuses_before_anything_is_signed(tmp_path: Path, described: Description) -> None:
    agreed = Agreed.of("house", [described])
    body, roles = agreed.to_bytes(), agreed.roles
    shares = shares_of(described.job, some_weights(described.job))

    def held(digest: str) -> Any:
        assert digest == described.digest
        return [shares[0]]

    ServeProgram("ann", held).prepare(body, roles)
    ServeProgram("registry", None).prepare(body, roles)
    # A client whose card the coordinator does not accept is missing; nobody else may.
    ServeProgram("ann", held).prepare(body, roles.without({"clinic"}))
    for other in (replace(roles, evaluators=("bob", "ann")), replace(roles, owners=("ann",))):
        with pytest.raises(RefusedError, match="roles in the contract differ"):
            ServeProgram("ann", held).prepare(body, other)
    with pytest.raises(RefusedError, match="roles in the contract differ"):
        ServeProgram("ann", held).prepare(body, replace(roles, clients=("clinic", "mallory")))
    with pytest.raises(RefusedError, match="has no vault with models"):
        ServeProgram("ann", None).prepare(body, roles)

    def retired(digest: str) -> Any:
        raise ArtifactError("it was retired here")

    with pytest.raises(ArtifactError, match="the model study: it was retired here"):
        ServeProgram("ann", retired).prepare(body, roles)

    def forbids(found: Agreed) -> None:
        assert found == agreed
        raise RefusedError("a rule of this node")

    with pytest.raises(RefusedError, match="a rule of this node"):
        ServeProgram("ann", held, forbids).prepare(body, roles)
