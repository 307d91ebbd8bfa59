"""Whole runs in real processes: what goes well, and every way in which it does not."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION
from parties.audit.entries import Kind
from parties.keys.identity import IdentityKeys
from parties.keys.vault import MemoryVault
from parties.nodes.supervisor import Child
from parties.wire.control_plane import ControlClient
from parties.wire.zmq_transport import CurveKeys, Transport
from tests.support.audit_logs import audit_log
from tests.support.local_run import LISTEN, ROLES, LocalRun, other_program, port_in_use
from tests.support.patience import PATIENCE_S, wait_until


@pytest.mark.parametrize(
    "listening",
    [{"alice", "bob", "dora"}, {"dora"}, set()],
    ids=["direct", "mixed", "relayed"],
)
def test_nodes_exchange_frames_whatever_the_route(local_run: LocalRun, listening: set[str]) -> None:
    local_run.coordinator()
    for name in ("alice", "bob", "dora"):
        listen = LISTEN if name in listening else None
        local_run.node(name, {"rounds": 5, "size": 300_000}, listen=listen)
    local_run.node("rita")
    results = local_run.results()
    for name in ("alice", "bob", "dora", "rita", "coordinator"):
        assert results[name]["status"] == 0, results[name]
    summaries = results["coordinator"]["summaries"]
    assert len({summary["sid"] for summary in summaries.values()}) == 1
    assert summaries["alice"]["secrets"]["bob"] == summaries["bob"]["secrets"]["alice"]
    assert summaries["alice"]["secrets"]["bob"] != summaries["alice"]["secrets"]["dora"]
    expected = {
        f"sealed/{to}/{by}/model.bin" for to in ("alice", "rita") for by in ("alice", "bob")
    }
    assert set(results["coordinator"]["files"]) == expected
    assert len(results["rita"]["files"]) == 2
    delivered = Path(local_run.root / "run" / "rita" / "sealed" / "rita" / "alice" / "model.bin")
    assert delivered.read_bytes() == b"alice" * 600_000
    relayed = results["coordinator"]["relayed"]
    assert (relayed == 0) == (listening != set() and listening != {"dora"})


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_nodes_meet_by_ipv6(local_run: LocalRun) -> None:
    """The coordinator, a node that is dialled, and frames that are relayed."""
    local_run.coordinator(listen="tcp://[::1]:*")
    assert local_run.address.startswith("tcp://[::1]:")
    local_run.node("alice")
    local_run.node("bob")
    local_run.node("dora", listen="tcp://[::1]:*")
    local_run.node("rita")
    results = local_run.results()
    assert {name: result["status"] for name, result in results.items()} == dict.fromkeys(results, 0)
    assert not any("unreachable" in result["stderr"] for result in results.values())
    assert results["coordinator"]["relayed"] > 0


def start_running(local_run: LocalRun, options: dict[str, Any], listen: str | None) -> None:
    local_run.coordinator()
    local_run.nodes({"rounds": 100_000, "pause": 0.002, **options}, listen=listen)
    children = local_run.supervisor.children
    wait_until(
        lambda: all(children[name].stdout for name in ("alice", "bob", "dora")), "all to run"
    )


@pytest.mark.slow
@pytest.mark.parametrize("listen", [LISTEN, None], ids=["direct", "relayed"])
@pytest.mark.parametrize("victim", ["alice", "dora", "coordinator"])
def test_all_end_soon_after_one_is_killed(
    local_run: LocalRun, victim: str, listen: str | None
) -> None:
    start_running(local_run, {}, listen)
    os.kill(local_run.supervisor.children[victim].process.pid, signal.SIGKILL)
    results = local_run.results()
    for name, result in results.items():
        if name != victim:
            assert result["error"] in ("PeerLostError", "AbortedError"), (name, result)
            assert victim in result["message"], (name, result)


def test_a_failure_is_told_as_one_word(local_run: LocalRun) -> None:
    start_running(local_run, {"fail": "bob"}, LISTEN)
    results = local_run.results()
    assert results["bob"]["error"] == "RangeError"
    for name in ("alice", "dora", "coordinator"):
        assert results[name]["error"] == "AbortedError", results[name]
        assert results[name]["message"] == "the run was aborted by bob: data"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("who", ["alice", "coordinator"])
def test_an_interrupt_ends_the_run_for_all(
    local_run: LocalRun, who: str, number: signal.Signals
) -> None:
    start_running(local_run, {}, LISTEN)
    os.kill(local_run.supervisor.children[who].process.pid, number)
    results = local_run.results()
    assert results[who]["status"] == 130
    for name in {"alice", "bob", "dora", "coordinator"} - {who}:
        assert results[name]["error"] == "AbortedError", results[name]
        assert results[name]["message"] == f"the run was aborted by {who}: interrupted"


@pytest.mark.slow
def test_a_machine_that_falls_silent_is_noticed(local_run: LocalRun) -> None:
    start_running(local_run, {}, LISTEN)
    victim = local_run.supervisor.children["bob"].process.pid
    os.kill(victim, signal.SIGSTOP)
    for name in ("alice", "dora", "coordinator"):
        local_run.supervisor.children[name].process.wait(PATIENCE_S)
    os.kill(victim, signal.SIGKILL)
    results = local_run.results()
    for name in ("alice", "dora", "coordinator"):
        assert results[name]["error"] in ("PeerLostError", "AbortedError"), results[name]


def test_a_party_that_never_arrives_is_named(local_run: LocalRun) -> None:
    local_run.coordinator(settings={"arrive_timeout_s": 10})
    local_run.node("alice")
    local_run.node("dora")
    results = local_run.results()
    assert results["coordinator"]["error"] == "PeerTimeoutError"
    assert "bob" in results["coordinator"]["message"]
    assert results["alice"]["message"] == "the run was aborted by coordinator: peer-timeout"


def test_no_coordinator_is_said_in_time(local_run: LocalRun) -> None:
    local_run.address = "tcp://127.0.0.1:1"
    local_run.node("alice", settings={"connect_timeout_s": 1.0})
    result = local_run.results()["alice"]
    assert result["error"] == "TransportError"
    said = "no coordinator answered at tcp://127.0.0.1:1 within 1 s: nothing listens on port 1 of"
    assert said in result["message"]


def test_another_program_at_the_address_is_no_coordinator(local_run: LocalRun) -> None:
    """Seen at once: the limit of this node is longer than this test waits."""
    with other_program(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        local_run.address = address
        local_run.node("alice", settings={"connect_timeout_s": 2 * PATIENCE_S})
        result = local_run.results()["alice"]
    assert result["error"] == "TransportError"
    assert f"no coordinator answered at {address}: another program" in result["message"]


def test_a_node_at_another_node_s_port_says_so(local_run: LocalRun) -> None:
    """What answers there speaks ZeroMQ, and is no coordinator that lets this node in."""
    with other_program(b"\xff" + bytes(8) + b"\x7f") as address:
        local_run.address = address
        local_run.node("alice", settings={"connect_timeout_s": 7.0})
        result = local_run.results()["alice"]
    assert result["error"] == "TransportError"
    assert "a ZeroMQ program there accepts nobody" in result["message"]


def test_a_key_outside_the_roster_is_refused(local_run: LocalRun) -> None:
    coordinator = local_run.coordinator()
    alice = local_run.node("alice", secret=local_run.keys["mallory"])
    result = ended_alone(local_run, alice, coordinator)
    assert result["error"] == "TransportError"
    assert "refuses this node" in result["message"]
    keys = local_run.keys["coordinator"]
    with audit_log(local_run.root, MemoryVault(keys, keys.card("coordinator"))) as log:
        found = {entry.kind: entry for _, entry in log.entries()}
    assert found[Kind.UNEXPECTED_PEER].fields["who"] == "without a key or ticket"
    assert found[Kind.RUN_ABORTED].fields["code"] == "interrupted"


def test_a_coordinator_with_another_key_is_refused(local_run: LocalRun) -> None:
    fake = local_run.start(
        "coordinator",
        {"kind": "coordinator", "listen": LISTEN, "roles": ROLES},
        secret=local_run.keys["mallory"],
    )
    local_run.address = local_run.supervisor.wait_report(fake, PATIENCE_S)
    result = ended_alone(local_run, local_run.node("alice"), fake)
    assert result["error"] == "TransportError"
    assert "does not hold the expected key" in result["message"]


def ended_alone(local_run: LocalRun, node: Child, other: Child) -> dict[str, Any]:
    """How `node` ended while `other` went on waiting."""
    node.process.wait(PATIENCE_S)
    assert other.process.poll() is None
    other.process.terminate()
    return local_run.results()[node.name]


def test_a_node_outside_the_job_is_refused_and_the_run_goes_on(local_run: LocalRun) -> None:
    local_run.coordinator(roles={**ROLES, "recipients": ["alice"]})
    local_run.node("rita")
    refused = local_run.supervisor.children["rita"].process
    wait_until(lambda: refused.poll() is not None, "rita's refusal")
    local_run.nodes(listen=LISTEN)
    results = local_run.results()
    assert results["rita"]["error"] == "TransportError"
    assert "has no role in the job there" in results["rita"]["message"]
    assert "of rita, who is not admitted here, were refused" in results["coordinator"]["stderr"]
    assert results["alice"]["status"] == 0


def test_own_rules_refuse_before_anything_is_shared(local_run: LocalRun) -> None:
    local_run.coordinator()
    local_run.nodes({"policy": "bob"}, listen=LISTEN)
    results = local_run.results()
    assert results["bob"]["error"] == "PolicyError"
    assert results["alice"]["message"] == "the run was aborted by bob: policy"
    assert not local_run.supervisor.children["alice"].stdout[0].startswith("running")


def test_different_constants_refuse_each_other(local_run: LocalRun) -> None:
    local_run.coordinator()
    local_run.nodes({"constants": "bob"}, listen=LISTEN)
    results = local_run.results()
    errors = {name: result["error"] for name, result in results.items()}
    assert "ContractError" in errors.values(), errors
    named = [r["message"] for r in results.values() if r["error"] == "ContractError"]
    assert all("constants differ: bob" in text or "bob" in text for text in named)


def test_a_port_in_use_is_named(local_run: LocalRun) -> None:
    with port_in_use() as address:
        local_run.start("coordinator", {"kind": "coordinator", "listen": address, "roles": ROLES})
        result = local_run.results()["coordinator"]
    assert result["error"] == "PortInUseError" and address in result["message"]


def test_no_child_outlives_a_killed_supervisor(local_run: LocalRun) -> None:
    """Closing our end of the pipe is what the children see when this process is killed."""
    local_run.coordinator()
    local_run.nodes({"rounds": 100_000, "pause": 0.01}, listen=LISTEN)
    supervisor = local_run.supervisor
    children = supervisor.children
    wait_until(lambda: all(children[name].stdout for name in ("alice", "bob", "dora")), "all")
    reader, writer = os.pipe()
    os.dup2(writer, supervisor._alive_writer)
    os.close(reader)
    os.close(writer)
    for child in children.values():
        assert child.process.wait(PATIENCE_S) != 0


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("body", "not the one in the contract"),
        ("contract", "did not sign this contract"),
        ("dealer", "alice cannot both deal and evaluate"),
        ("roster", "has other cards than this node"),
        ("nonce", "alice did not sign this contract"),
        ("another", "proposes another job than the one bob checked"),
        ("missing", "not those of the job's nodes"),
        ("session", "alice did not sign this session"),
        ("checkpoint", "alice did not sign this session"),
    ],
)
def test_a_lying_coordinator_is_found_out(local_run: LocalRun, lie: str, said: str) -> None:
    local_run.coordinator(sabotage=lie)
    local_run.nodes(listen=LISTEN)
    results = local_run.results()
    found = [results[name] for name in ("alice", "bob", "dora")]
    # With another contract everybody's signature is wrong for somebody: who says so first, wins.
    if lie != "contract":
        assert found[1]["error"] == "ContractError" and said in found[1]["message"], found[1]
    for result in found:
        assert result["error"] in ("ContractError", "AbortedError"), result
        assert result["message"].endswith("contract") or result["error"] == "ContractError"
    for name in ("alice", "bob", "dora"):
        assert local_run.supervisor.children[name].stdout[0] != "running"


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("outcome", "the openings in the statement of results are not those that bob took part in"),
        ("files", "the files of bob are not those that it sent"),
        ("run", "sent the results of another run to sign"),
        ("record", "alice did not sign the statement of results"),
    ],
)
def test_no_node_signs_or_takes_other_results(local_run: LocalRun, lie: str, said: str) -> None:
    local_run.coordinator(sabotage=lie)
    local_run.nodes(listen=LISTEN)
    results = local_run.results()
    assert results["bob"]["error"] == "ContractError" and said in results["bob"]["message"]
    if lie != "record":  # the others have everybody's signature by then
        for name in ("alice", "dora", "coordinator"):
            assert results[name]["error"] == "AbortedError", results[name]


def test_without_every_signature_there_is_no_result(local_run: LocalRun) -> None:
    local_run.coordinator()
    local_run.nodes({"dies": "bob"}, listen=LISTEN)
    results = local_run.results()
    assert results["coordinator"]["error"] == "PeerLostError"
    assert "it had not signed the results, so there are none" in results["coordinator"]["message"]
    for name in ("alice", "dora"):
        assert results[name]["error"] in ("PeerLostError", "AbortedError"), results[name]


@pytest.mark.parametrize("kind", ["run-signed", "checkpoint-received", "run-started"])
def test_a_node_that_cannot_log_what_it_does_ends_the_run_before_it(
    local_run: LocalRun, kind: str
) -> None:
    local_run.coordinator()
    for name in ("alice", "bob", "dora"):
        local_run.node(name, listen=LISTEN, full=kind if name == "bob" else "")
    results = local_run.results()
    assert results["bob"]["error"] == "AuditError", results["bob"]
    for name in ("alice", "dora", "coordinator"):
        assert results[name]["message"] == "the run was aborted by bob: audit", results[name]
    assert local_run.supervisor.children["bob"].stdout[0] != "running"


def test_a_relayed_frame_that_was_altered_ends_the_run(local_run: LocalRun) -> None:
    local_run.coordinator(sabotage="frame")
    local_run.nodes({"rounds": 100_000}, listen=None)
    results = local_run.results()
    assert results["bob"]["error"] == "AuthenticationError", results
    assert results["bob"]["message"].startswith("alice, 'round ")
    for name in ("alice", "dora", "coordinator"):
        assert results[name]["message"] == "the run was aborted by bob: authentication"


def test_another_release_is_refused_with_both_versions_named(local_run: LocalRun) -> None:
    local_run.coordinator()
    alice = local_run.node("alice")
    wait_until(lambda: "connected" in alice.stderr, "alice to connect")
    other = CONTRACT_VERSION + 1
    local_run.node("bob", version=other)
    results = local_run.results()
    assert results["coordinator"]["error"] == "ContractError"
    said = f"bob has version {other}, this coordinator {CONTRACT_VERSION}"
    assert said in results["coordinator"]["message"]
    assert results["bob"]["message"] == "the run was aborted by coordinator: version"


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"\x81\xa1t\xa4done", b"\x91" * 5000])
def test_garbage_from_a_node_ends_the_run_and_names_it(
    local_run: LocalRun, keys: dict[str, IdentityKeys], data: bytes
) -> None:
    local_run.coordinator()
    alice = local_run.node("alice")
    wait_until(lambda: "connected" in alice.stderr, "alice to connect")
    bob = keys["bob"]
    server = keys["coordinator"].curve_public
    transport = Transport(CurveKeys(bob.curve_public, bob.curve_secret), {})
    client = ControlClient(transport, local_run.address, server)
    try:
        client.send(control.encode(control.Hello(CONTRACT_VERSION, "bob")))
        client.poll(PATIENCE_S)
        client.send(data)
        results = local_run.results()
    finally:
        client.close(0)
        client.relay.close()
        transport.close()
    assert results["coordinator"]["error"] == "ControlError"
    assert "bob sent" in results["coordinator"]["message"]
    assert results["alice"]["message"] == "the run was aborted by bob: control"
