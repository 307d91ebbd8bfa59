"""Entries of questions: few, complete, and tried again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import mpc_train
from mpc_train.serving import journal
from mpc_train.serving.journal import Journal
from parties.audit.entries import Entry, Kind, Value
from parties.errors import AuditError

MODEL, OTHER = "0f" * 32, "1e" * 32


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A log that may be full."""

    def __init__(self) -> None:
        self.entries: list[tuple[Kind, dict[str, Value]]] = []
        self.full = False

    def __call__(self, kind: Kind, fields: Mapping[str, Value]) -> None:
        if self.full:
            raise AuditError("the disk is full")
        Entry("2026-01-01T00:00:00.000Z", kind, fields=dict(fields)).encoded()
        self.entries.append((kind, dict(fields)))


def test_an_entry_stands_for_all_of_a_client_within_a_second() -> None:
    clock, log = Clock(), Log()
    kept = Journal(log, clock)
    for _ in range(50):
        kept.answered("clinic", MODEL, 16)
    kept.answered("clinic", OTHER, 128)
    kept.answered("lab", MODEL, 1)
    kept.refused("lab", "", "unknown-model")
    kept.refused("lab", MODEL, "quota", 128)
    kept.write_if_due()
    assert log.entries == []
    clock.now += 1
    kept.write_if_due()
    assert log.entries == [
        (
            Kind.QUERY_ANSWERED,
            {"client": "clinic", "model": MODEL, "rows": 800, "questions": 50},
        ),
        (Kind.QUERY_ANSWERED, {"client": "clinic", "model": OTHER, "rows": 128, "questions": 1}),
        (Kind.QUERY_ANSWERED, {"client": "lab", "model": MODEL, "rows": 1, "questions": 1}),
        (
            Kind.QUERY_REFUSED,
            {"client": "lab", "model": "", "rows": 0, "code": "unknown-model", "questions": 1},
        ),
        (
            Kind.QUERY_REFUSED,
            {"client": "lab", "model": MODEL, "rows": 128, "code": "quota", "questions": 1},
        ),
    ]
    kept.write_if_due()
    kept.write()
    assert len(log.entries) == 5


def test_a_second_is_over_while_questions_come() -> None:
    clock, log = Clock(), Log()
    kept = Journal(log, clock)
    for _ in range(100):
        kept.answered("clinic", MODEL, 1)
        clock.now += 0.25
    assert len(log.entries) == 20
    kept.write()
    assert sum(int(str(fields["rows"])) for _, fields in log.entries) == 100


def test_what_could_not_be_written_is_tried_again() -> None:
    clock, log = Clock(), Log()
    kept = Journal(log, clock)
    kept.answered("clinic", MODEL, 1)
    log.full = True
    with pytest.raises(AuditError):
        kept.write()
    kept.answered("clinic", MODEL, 1)
    log.full = False
    kept.write()
    assert [fields["questions"] for _, fields in log.entries] == [2]


def test_a_release_is_written_at_once_and_after_the_questions_before_it() -> None:
    log = Log()
    kept = Journal(log, Clock())
    kept.answered("clinic", MODEL, 16)
    kept.releasing(MODEL, 1000, "0.5")
    assert [kind for kind, _ in log.entries] == [Kind.QUERY_ANSWERED, Kind.COUNTS_RELEASED]


def test_many_clients_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_KEYS", 10)
    log = Log()
    kept = Journal(log, Clock())
    for number in range(25):
        kept.answered(f"client-{number}", MODEL, 1)
    assert len(log.entries) == 20


def test_every_kind_of_entry_is_described() -> None:
    page = (Path(mpc_train.__path__[0]) / "docs" / "audit.md").read_text()
    assert [kind for kind in Kind if f"`{kind}`" not in page] == []
