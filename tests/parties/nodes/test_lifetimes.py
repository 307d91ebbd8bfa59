"""A node or a coordinator does not start with an identity or a contract that has expired."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from parties.agreement import control
from parties.agreement.contract import Contract, Roles
from parties.errors import ExpiredError
from parties.keys import lifetime
from parties.keys.identity import IdentityKeys
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from parties.nodes.coordinator import Coordinator, CoordinatorSettings
from parties.nodes.node import NodeSettings, _Node
from tests.support.audit_logs import audit_log

ROLES = Roles(("ann", "bob"), ("ann", "bob"), "dora", ("ann",))
PAST = lifetime.now() - timedelta(days=10)


def vault(name: str, days: int = 730) -> MemoryVault:
    keys = IdentityKeys.generate()
    return MemoryVault(keys, keys.card(name, PAST, days))


VAULTS = {name: vault(name) for name in ("ann", "bob", "dora", "desk")}
EXPIRED = {name: vault(name, 9) for name in ("bob", "desk")}
ROSTER = Roster.of(one.card for one in VAULTS.values())
LATE = ROSTER.add(EXPIRED["bob"].card, replace=True)


def coordinator(root: Path, by: MemoryVault, roster: Roster) -> None:
    settings = CoordinatorSettings("tcp://127.0.0.1:*", root / "run")
    with audit_log(root, by) as audit:
        Coordinator(by, roster, "job", (ROLES, b"body"), settings, audit)._close(0)


def test_a_coordinator_refuses_an_expired_identity_and_an_expired_card(tmp_path: Path) -> None:
    coordinator(tmp_path, VAULTS["desk"], ROSTER)
    with pytest.raises(ExpiredError, match="card of bob expired"):
        coordinator(tmp_path, VAULTS["desk"], LATE)
    with pytest.raises(ExpiredError, match=r"identity of desk expired.*identity rotate desk"):
        coordinator(tmp_path / "late", EXPIRED["desk"], ROSTER)


def node(root: Path, by: MemoryVault, roster: Roster) -> _Node:
    settings = NodeSettings("desk", "tcp://127.0.0.1:1", root / "run")
    with audit_log(root, by) as audit:
        return _Node(by, roster, settings, object(), audit, lambda *_: None)  # type: ignore[arg-type]


def close(one: _Node) -> None:
    one._plane.close(0)
    one._client.close(0)
    one._client.relay.close()
    one._transport.close()


def test_a_node_refuses_an_expired_identity(tmp_path: Path) -> None:
    with pytest.raises(ExpiredError, match="identity of bob expired"):
        node(tmp_path, EXPIRED["bob"], ROSTER)


def test_a_node_lets_no_expired_card_connect_and_signs_no_contract_with_one(tmp_path: Path) -> None:
    one = node(tmp_path, VAULTS["ann"], LATE)
    try:
        assert set(one._transport.allowed) == {"ann", "dora", "desk"}
        contract = Contract.of("job", ROLES, b"body", LATE.subset(ROLES.names).digest())
        one._note = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(ExpiredError, match="card of bob expired"):
            one._check(control.Propose(contract.to_bytes(), b"body"))
    finally:
        close(one)


def test_dates_of_a_card_cannot_be_changed_afterwards() -> None:
    card = replace(EXPIRED["bob"].card, expires=VAULTS["bob"].card.expires)
    with pytest.raises(Exception, match="does not verify"):
        card.verify()
