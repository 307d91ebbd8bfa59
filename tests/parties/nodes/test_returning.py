"""When another session of the same run follows one that broke off, and when not any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT, SIGTERM
from types import SimpleNamespace
from typing import Any, cast

import pytest

from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION, Roles
from parties.errors import AbortedError
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from parties.nodes import node as nodes
from parties.nodes.coordinator import Coordinator, CoordinatorSettings, _LostError
from parties.nodes.node import NodeResult, NodeSettings, _Node, run_node
from parties.stop import StopFlag
from protocols.errors import PeerLostError
from tests.support.audit_logs import audit_log

ROLES = Roles(("ann", "bob"), ("ann", "bob"), "dora", ("ann", "rita"))
VAULTS = {name: MemoryVault.generate(name) for name in ("ann", "bob", "dora", "rita", "desk")}
ROSTER = Roster.of(vault.card for vault in VAULTS.values())


class Desk(Coordinator):
    """A coordinator whose nodes hold what `held` says, and answer every proposal."""

    held: dict[str, tuple[bytes, ...]] = {}  # noqa: RUF012 (of one test each)

    told: list[tuple[Any, Any]] = []  # noqa: RUF012

    def _tell(self, names: Any, message: Any) -> None:
        self.told.append((names, message))

    def _collect(self, kind: Any, names: Any, deadline: float, failure: str) -> dict[str, Any]:
        if kind is not control.Accept:
            return {}
        nonce = bytes(32)
        return {name: SimpleNamespace(nonce=nonce, held=self.held.get(name, ())) for name in names}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    settings = CoordinatorSettings("tcp://127.0.0.1:*", tmp_path / "run", return_timeout_s=60.0)
    with audit_log(tmp_path, VAULTS["desk"]) as audit:
        events: list[tuple[str, Any]] = []
        made = Desk(
            VAULTS["desk"],
            ROSTER,
            "job",
            (ROLES, b"body"),
            settings,
            audit,
            lambda kind, fields: events.append((kind, fields)),
        )
        made.events = events  # type: ignore[attr-defined]
        made._nodes = {
            name: SimpleNamespace(address=None, inbox=[], process=b"")  # type: ignore[misc]
            for name in ROLES.nodes
        }
        made.held, made.told = {}, []
        try:
            yield made
        finally:
            made._close(0)


def breaks_off(desk: Desk) -> bool:
    """One session that all have signed is broken off; whether another one follows."""
    desk._agreed(ROLES.nodes)
    desk._phase = "running"
    return desk._may_resume("lost")


def test_a_run_that_gets_further_may_break_off_as_often_as_it_likes(desk: Desk) -> None:
    for number in range(4 * control.MAX_ATTEMPTS):
        older, newer = bytes([number]), bytes([number + 1])
        desk.held = {"ann": (older, newer), "bob": (newer, b"\xff")}
        assert breaks_off(desk)
    assert desk._attempt == 4 * control.MAX_ATTEMPTS


def test_a_run_that_gets_no_further_ends(desk: Desk) -> None:
    desk.held = {"ann": (b"1",), "bob": (b"1",)}
    said = [breaks_off(desk) for _ in range(control.MAX_ATTEMPTS + 2)]
    assert said.index(False) == control.MAX_ATTEMPTS and not any(said[control.MAX_ATTEMPTS :])
    desk._phase = "agreeing"
    assert not desk._may_return("bob")


def test_what_one_evaluator_alone_holds_is_no_progress(desk: Desk) -> None:
    said = []
    for number in range(control.MAX_ATTEMPTS):
        desk.held = {"ann": (bytes([number]),), "dora": (bytes([number]),)}
        said.append(breaks_off(desk))
    assert said[-1] is False and all(said[:-1])


def test_results_are_kept_before_any_node_hears_of_the_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that is killed after that finds no node again that could repeat the run."""
    monkeypatch.setattr(desk, "_signed_results", lambda done: b"record")
    monkeypatch.setattr(desk, "_relayed", lambda signed, addresses: dict.fromkeys(ROLES.nodes, ()))
    monkeypatch.setattr(desk, "_send", lambda name, message: None)
    told: list[Any] = []

    def keep(result: Any) -> None:
        assert result.record == b"record"
        told.extend(type(message) for _, message in desk.told)

    desk._keep_results = keep
    desk._session(ROLES.nodes)
    assert control.Go in told and control.Finish not in told
    assert isinstance(desk.told[-1][1], control.Finish)


def test_proposals_are_numbered_beyond_the_limit_of_fruitless_ones() -> None:
    message = control.Propose(b"", b"", attempt=control.MAX_ATTEMPTS + 1)
    assert control.decode_from_coordinator(control.encode(message), "desk") == message


def test_progress_of_a_mere_recipient_is_nobody_s(desk: Desk) -> None:
    desk._nodes["rita"] = SimpleNamespace(inbox=[], process=b"")  # type: ignore[assignment]
    said = control.encode(control.Progress({"step": 10**6}))
    for name in ("rita", "bob"):
        desk._handle(SimpleNamespace(name=name, process=b"", data=said))  # type: ignore[arg-type]
    events = desk.events  # type: ignore[attr-defined]
    assert [fields["node"] for kind, fields in events if kind == "progress"] == ["bob"]


def test_nothing_of_a_session_that_broke_off_is_in_the_next_one(desk: Desk) -> None:
    """Results of two sessions would be put together to a model that says ok."""
    desk._phase = "running"
    part = control.ArtifactPart("sealed", "ann/model.envelope", 0, True, b"half of a model")
    desk._keep("bob", part)
    desk._parted["dora"] = b"signature"
    (file,) = desk._collector.files
    assert file.exists()
    desk._suspend(_LostError("bob", "lost"))
    assert not desk._collector.files and not desk._collector.sealed
    assert not file.exists(), "as often as a run breaks off, it would take room"
    assert not desk._parted and not desk._nodes
    ((names, message),) = desk.told
    assert set(names) == set(ROLES.nodes)
    assert message == control.Aborted("lost", "bob", None, 60)


@pytest.mark.parametrize("code", ["policy", "data", "range", "authentication", "contract", "audit"])
def test_what_would_be_the_same_again_ends_the_run(desk: Desk, code: str) -> None:
    desk._phase = "running"
    assert desk._may_resume("lost") and desk._may_resume("peer-timeout")
    assert not desk._may_resume(code)


def test_a_second_process_takes_the_place_of_one_that_is_away_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    monkeypatch.setattr(desk, "_refuse", lambda process, name, code: refused.append(code))
    monkeypatch.setattr(desk._server, "is_away", lambda process: process == b"away")
    desk._phase = "running"
    hello = control.encode(control.Hello(CONTRACT_VERSION, "bob"))
    again: Any = SimpleNamespace(name="bob", process=b"second", data=hello)
    desk._handle(again)
    assert refused == ["already-connected"]
    desk._nodes["bob"].process = b"away"
    with pytest.raises(_LostError):
        desk._handle(again)
    assert refused == ["already-connected"] and desk._again == [again]


PATIENCES: list[float] = []
"""How long each session of the last test waited for its coordinator."""


def outcomes(monkeypatch: pytest.MonkeyPatch, *ends: Any, asked: bool = False) -> Any:
    """What `run_node` comes to if its sessions end so: (error or result, whether all had
    signed)."""
    left = [*ends]
    PATIENCES.clear()

    class Session:
        roster = ROSTER

        def __init__(self, *of: Any) -> None:
            self.has_begun, self.asked = of[-1], asked
            PATIENCES.append(of[2].connect_timeout_s)

        def run(self) -> Any:
            end, begins = left.pop(0)
            self.has_begun = self.has_begun or begins
            if isinstance(end, BaseException):
                raise end
            return end

    monkeypatch.setattr(nodes, "_Node", Session)
    settings = NodeSettings("desk", "tcp://desk:1", Path(), return_timeout_s=5.0)
    try:
        return run_node(VAULTS["ann"], ROSTER, settings, cast(Any, None), cast(Any, None))
    finally:
        assert not left


LOST = AbortedError("coordinator-lost", "desk")
RESULT = NodeResult({}, b"", 0, 0, (), ROSTER, b"")


def test_a_coordinator_may_be_lost_again_before_the_next_session_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = ((LOST, True), (LOST, False), (LOST, False), (RESULT, True))
    assert outcomes(monkeypatch, *ends) is RESULT
    assert PATIENCES == [120.0, 5.0, 5.0, 5.0]
    told = AbortedError("lost", "bob", None, 60)
    assert outcomes(monkeypatch, (told, True), (RESULT, True)) is RESULT
    assert PATIENCES == [120.0, 60.0]


def test_a_run_that_never_began_does_not_wait_for_another_coordinator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(AbortedError):
        outcomes(monkeypatch, (LOST, False))


def test_a_run_that_is_over_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AbortedError):
        outcomes(monkeypatch, (AbortedError("policy", "bob"), True))


def test_a_node_that_was_asked_to_stop_begins_no_other_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waited for its next checkpoint when another node was lost."""
    with pytest.raises(KeyboardInterrupt):
        outcomes(monkeypatch, (AbortedError("lost", "bob", None, 60), True), asked=True)


def test_who_loses_neighbours_and_coordinator_at_once_learns_whether_a_session_follows() -> None:
    """As when this node's own network is down: first a neighbour is given up."""
    said: list[Any] = []

    class Stop(StopFlag):
        def wait(self, timeout_s: float) -> bool:
            said.append(timeout_s)
            if len(said) == 20:  # later than the coordinator would take to say who died
                control_thread.state = "lost"
                self.set(LOST)
            return self.reason is not None

    def lost() -> Any:
        raise PeerLostError("the connection to bob broke")

    control_thread = SimpleNamespace(
        state="reconnecting", start=lambda: None, finish=lambda: None, say=said.append
    )
    made: Any = _Node.__new__(_Node)
    made._me, made._control, made.has_begun = "ann", control_thread, True
    made._stop = Stop()
    made._run, made._note_end = lost, lambda error: None
    made._plane = made._client = made._transport = SimpleNamespace(
        close=lambda *of: None, relay=SimpleNamespace(close=lambda: None)
    )
    with pytest.raises(AbortedError, match="desk was lost"):
        made.run()
    assert not any(isinstance(each, control.Abort) for each in said)


def test_who_is_away_is_not_taken_for_silent() -> None:
    made: Any = _Node.__new__(_Node)
    made._plane = SimpleNamespace(away=())
    made._set_away({"bob"})
    assert made._plane.away == {"bob"}


def test_the_first_request_to_stop_is_deferred_where_checkpoints_are_written() -> None:
    made: Any = _Node.__new__(_Node)
    made._stoppable, made.asked = False, False
    assert not made._defers() and not made.asked
    made._set_stoppable(True)
    assert made._defers() and made.asked
    assert not made._defers(), "the second one interrupts"


@pytest.mark.parametrize(
    ("clients", "number", "returns_s"),
    [((), SIGINT, 0), ((), SIGTERM, 60), (("clinic",), SIGINT, 60), (("clinic",), SIGTERM, 60)],
)
def test_who_stops_the_coordinator_of_a_service_ends_no_other_node(
    clients: tuple[str, ...], number: int, returns_s: int
) -> None:
    """A person who stops that of a run ends the run."""

    def stopped() -> Any:
        raise KeyboardInterrupt(number)

    said: list[int] = []
    made: Any = Coordinator.__new__(Coordinator)
    made._me, made._run = "desk", stopped
    made._roles = Roles((), ("ann", "bob"), "dora", (), clients=clients)
    made._settings = CoordinatorSettings("tcp://127.0.0.1:*", Path(), return_timeout_s=60.0)
    made._abort = lambda code, by, wait_s: said.append(wait_s)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert said == [returns_s]
