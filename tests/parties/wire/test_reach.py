"""Addresses that cannot be dialled are told apart, and the run goes on by the relay."""

import socket

from parties.wire.reach import try_address
from tests.support.local_run import LISTEN, LocalRun


def test_a_name_a_port_and_another_program_are_told_apart() -> None:
    name = try_address("tcp://nowhere.invalid:7700", 5.0)
    assert name is not None and "does not resolve" in name.text
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        silent = try_address(f"tcp://127.0.0.1:{port}", 0.2)
        assert silent is not None and "another program" in silent.text
    closed = try_address(f"tcp://127.0.0.1:{port}", 5.0)
    assert closed is not None and "nothing listens" in closed.text


def test_a_peer_that_nobody_can_dial_is_named_and_relayed(local_run: LocalRun) -> None:
    local_run.coordinator()
    local_run.node("alice", listen=LISTEN)
    local_run.node("bob")
    local_run.node("dora", listen=LISTEN, settings={"advertise": "tcp://127.0.0.1:1"})
    local_run.node("rita")
    results = local_run.results()
    for name, result in results.items():
        assert result["status"] == 0, (name, result)
    assert "unreachable" in results["bob"]["stderr"]
    assert results["coordinator"]["relayed"] > 0
