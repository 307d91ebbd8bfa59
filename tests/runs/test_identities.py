"""Rotation and revocation with real processes: before a run, and during one."""

import shutil
from pathlib import Path

import pytest

from parties.audit.entries import Kind
from parties.keys import lifetime
from parties.keys.roster import Roster
from parties.keys.vault import FileVault, MemoryVault
from tests.support.audit_logs import audit_log
from tests.support.local_run import LISTEN, LocalRun
from tests.support.patience import wait_until

NAMES = ("coordinator", "alice", "bob", "dora")


def own_roster(run: LocalRun, name: str) -> str:
    """A copy of the roster that only this node has."""
    place = run.root / "own" / name / "roster"
    shutil.copytree(run.roster, place)
    return str(place)


def test_a_node_with_new_keys_joins_and_everybody_s_roster_follows(local_run: LocalRun) -> None:
    """No operator has copied a file."""
    rosters = {name: own_roster(local_run, name) for name in NAMES}
    before = Roster.load(local_run.roster)
    local_run.coordinator(roster=rosters["coordinator"])
    for name in ("alice", "bob", "dora"):
        rotated = name in ("alice", "dora")
        local_run.node(name, roster=rosters[name], listen=LISTEN, rotated=rotated)
    results = local_run.results()
    assert {name: one["status"] for name, one in results.items()} == dict.fromkeys(NAMES, 0), (
        results
    )
    cards = [results[name]["cards"] for name in ("alice", "bob", "dora")]
    assert cards[0] == cards[1] == cards[2]
    for path in rosters.values():
        after = Roster.load(path)
        assert {card.name: card.fingerprint for card in after} == cards[0]
        for name in ("alice", "dora"):
            assert after.card(name).sequence == 1
            assert after.line(name)[1] == before.card(name)
        assert after.card("bob") == before.card("bob")
    keys = local_run.keys["bob"]
    folder = Path(rosters["bob"]).parent
    with audit_log(folder, MemoryVault(keys, keys.card("bob"))) as log:
        noted = [entry.fields["node"] for _, entry in log.entries() if entry.kind == "peer-rotated"]
    assert sorted(map(str, noted)) == ["alice", "dora"]


@pytest.mark.slow
def test_a_card_revoked_during_a_run_ends_it_and_is_named(local_run: LocalRun) -> None:
    """By a node that is not the coordinator; the others learn whose card it is."""
    roster = own_roster(local_run, "alice")
    local_run.coordinator()
    for name in ("alice", "bob", "dora"):
        place = roster if name == "alice" else str(local_run.roster)
        options = {"rounds": 100_000, "pause": 0.002}
        local_run.node(name, options, listen=LISTEN, roster=place)
    children = local_run.supervisor.children
    wait_until(
        lambda: all(children[name].stdout for name in ("alice", "bob", "dora")), "all to run"
    )
    card = Roster.load(roster).card("bob")
    Roster.update(roster, lambda known: known.revoke(card, lifetime.now()))
    results = local_run.results()
    assert results["alice"]["error"] == "RevokedError", results["alice"]
    assert "the card of bob" in results["alice"]["message"]
    for name in ("coordinator", "bob", "dora"):
        said = "the run was aborted by alice: revoked, the card of bob"
        assert results[name]["message"] == said, results[name]
    keys = local_run.keys["alice"]
    with audit_log(Path(roster).parent, MemoryVault(keys, keys.card("alice"))) as log:
        kinds = [entry.kind for _, entry in log.entries()]
    assert Kind.PEER_REVOKED in kinds and kinds[-1] is Kind.RUN_ABORTED


@pytest.mark.slow
def test_a_coordinator_that_waits_drops_a_revoked_node(local_run: LocalRun) -> None:
    local_run.coordinator()
    local_run.node("alice")
    local_run.node("bob")
    children = local_run.supervisor.children
    wait_until(
        lambda: all("connected" in "".join(children[name].stderr) for name in ("alice", "bob")),
        "two nodes to connect",
    )
    card = Roster.load(local_run.roster).card("bob")
    Roster.update(local_run.roster, lambda known: known.revoke(card, lifetime.now()))
    results = local_run.results()
    assert results["coordinator"]["error"] == "RevokedError"
    for name in ("alice", "bob"):
        assert "the card of bob" in results[name]["message"], results[name]


@pytest.mark.slow  # rotations are tested in test_rotation.py
def test_keys_are_rotated_while_a_run_computes(local_run: LocalRun) -> None:
    """Beside the running nodes; no frame is lost, and all end with the same cards and fresh keys.

    Two nodes at once: one rotation waits for the other. Direct and relayed connections.
    """
    vaults = {
        name: FileVault.create(local_run.root / "home" / name, name, b"correct horse")
        for name in ("alice", "dora")
    }
    Roster.update(
        local_run.roster,
        lambda known: known.add(vaults["alice"].card, replace=True).add(
            vaults["dora"].card, replace=True
        ),
    )
    rosters = {name: own_roster(local_run, name) for name in NAMES}
    for name, one in vaults.items():
        local_run.keys[name] = one._keys
    local_run.coordinator(roster=rosters["coordinator"], look_s=0.1)
    options = {"rounds": 2500, "pause": 0.001}
    for name in ("alice", "bob", "dora"):
        identity = {"identity": str(vaults[name].path)} if name in vaults else {"identity": ""}
        listen = LISTEN if name == "dora" else None
        more = {**identity, "listen": listen}
        local_run.node(name, options, roster=rosters[name], look_s=0.1, **more)  # type: ignore[arg-type]
    children = local_run.supervisor.children
    wait_until(
        lambda: all(children[name].stdout for name in ("alice", "bob", "dora")), "all to run"
    )
    after = {name: one.rotate() for name, one in vaults.items()}
    results = local_run.results()
    for name in NAMES:
        assert results[name]["status"] == 0, (name, results[name])
    for name in ("alice", "bob", "dora"):
        cards = results[name]["cards"]
        for rotated, one in after.items():
            assert cards[rotated] == one.card.fingerprint, name
            assert Roster.load(rosters[name]).card(rotated) == one.card
        fresh = results[name]["summary"]["fresh"]
        assert sorted(fresh) == sorted({"alice", "bob", "dora"} - {name})
    with audit_log(Path(rosters["alice"]).parent, after["alice"]) as log:
        kinds = [entry.kind for _, entry in log.entries()]
    assert Kind.IDENTITY_ROTATED in kinds and Kind.PEER_ROTATED in kinds
    assert kinds.index(Kind.IDENTITY_ROTATED) < kinds.index(Kind.RUN_ENDED)
