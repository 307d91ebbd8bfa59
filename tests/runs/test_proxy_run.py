"""Real nodes whose only way out is an HTTP proxy."""

import socket

import pytest

from tests.support.http_proxy import HttpProxy
from tests.support.local_run import LISTEN, LocalRun


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_run_passes_the_proxy_to_the_coordinator_and_to_a_peer(local_run: LocalRun) -> None:
    """bob knows the coordinator and alice by names that only the proxy resolves."""
    local_run.coordinator()
    port = free_port()
    alice = f"tcp://127.0.0.1:{port}"
    names = {"study.invalid": local_run.address, "alice.invalid": alice}
    with HttpProxy(names, user="bob", password="pale ale") as proxy:
        local_run.node("alice", listen=alice, settings={"advertise": f"tcp://alice.invalid:{port}"})
        coordinator = f"tcp://study.invalid:{local_run.address.rpartition(':')[2]}"
        url = proxy.url.replace("//", "//bob:pale%20ale@")
        local_run.node("bob", address=coordinator, proxy=url)
        local_run.node("dora", listen=LISTEN, proxy=url)
        results = local_run.results()
    for name, result in results.items():
        assert result["status"] == 0, (name, result)
    asked = {target for target, _ in proxy.asked}
    assert asked == {coordinator.removeprefix("tcp://"), f"alice.invalid:{port}"}
    assert "unreachable" not in results["bob"]["stderr"]
    assert len(proxy.carried) > 1000


@pytest.mark.slow
def test_a_rejected_password_ends_a_node_at_once(local_run: LocalRun) -> None:
    local_run.coordinator()
    with HttpProxy({"study.invalid": local_run.address}, user="bob", password="right") as proxy:
        url = proxy.url.replace("//", "//bob:wrong@")
        local_run.node("bob", address="tcp://study.invalid:7700", proxy=url)
        child = local_run.supervisor.children["bob"]
        child.process.wait(60)
        local_run.supervisor.children["coordinator"].process.terminate()
        results = local_run.results()
    assert results["bob"]["error"] == "TransportError"
    assert "rejects the user or the password (407)" in results["bob"]["message"]
    assert "wrong" not in results["bob"]["message"] + results["bob"]["stderr"]
    assert len(proxy.asked) == 1
