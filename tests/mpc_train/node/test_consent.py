"""Who agrees to a job: a digest in the rules, an approver's signature, or a person at the terminal.

A real terminal is made for the questions (a pseudo-terminal); no test waits for its own.
"""

import contextlib
import io
import json
import os
import pty
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from mpc_train.admission.load import load_job
from mpc_train.commands.nodes import Events, _Guarded
from mpc_train.errors import ConfigError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.node.consent import Wait, agree, patience, roles_of, terminal
from mpc_train.run.approval import Approvals, approve
from mpc_train.run.node_config import NodeConfig, load_node_config
from mpc_train.run.progress import ProgressView
from parties.keys.roster import Roster
from parties.keys.vault import FileVault, MemoryVault
from tests.support.audit_logs import audit_log
from tests.support.commands import last_object, mpc_train
from tests.support.csv_tables import csv_lines
from tests.support.jobs import JOB, write_job
from tests.support.node_files import CONSENTING, config_of
from tests.support.node_vaults import node_vault

PASSPHRASE = b"correct horse battery staple"
DAY = date(2030, 5, 17)


def today() -> date:
    return DAY


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return load_job(write_job(tmp_path))


@pytest.fixture(scope="module")
def board() -> MemoryVault:
    return MemoryVault.generate("board")


@pytest.fixture(scope="module")
def roster(board: MemoryVault) -> Roster:
    return Roster.of([board.card, MemoryVault.generate("ann").card])


def never(question: str) -> bool:
    raise AssertionError(question)


def test_a_digest_in_the_rules_is_agreement(tmp_path: Path, job: Job, roster: Roster) -> None:
    config = config_of(tmp_path, f'jobs = ["{"0" * 64}", "{job.digest().hex()}"]')
    assert agree(config, roster, job, never, today).why == "its digest is listed under jobs"


@pytest.mark.parametrize("more", ["", f'jobs = ["{"0" * 64}"]', 'approvers = ["board"]'])
def test_without_it_and_without_a_terminal_the_line_to_write_is_said(
    tmp_path: Path, job: Job, roster: Roster, more: str
) -> None:
    config = config_of(tmp_path, more)
    with pytest.raises(RefusedError, match="is not listed under jobs") as caught:
        agree(config, roster, job, None, today)
    assert f'[rules] of {config.path}: jobs = ["{job.digest().hex()}"]' in str(caught.value)
    assert "Nothing was shared" in str(caught.value)


def test_a_person_decides(tmp_path: Path, job: Job, roster: Roster) -> None:
    asked: list[str] = []

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    config = config_of(tmp_path)
    assert "agreed" in agree(config, roster, job, yes, today).why
    assert job.digest().hex() in asked[0] and "[y/N]" in asked[0]
    with pytest.raises(RefusedError, match="was refused at the terminal"):
        agree(config, roster, job, lambda _: False, today)


@contextlib.contextmanager
def at_a_terminal(patch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pseudo-terminal in the place of standard input and error; its other end."""
    master, slave = pty.openpty()
    with (
        os.fdopen(slave, "r") as stdin,
        os.fdopen(os.dup(slave), "w") as stderr,
        patch.context() as patched,
    ):
        patched.setattr("sys.stdin", stdin)
        patched.setattr("sys.stderr", stderr)
        yield master
    os.close(master)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("yo\n", False)],
)
def test_a_terminal_is_asked_and_only_yes_is_yes(
    monkeypatch: pytest.MonkeyPatch, typed: str, answer: bool
) -> None:
    with at_a_terminal(monkeypatch) as master:
        ask = terminal(ProgressView(), 300)
        assert ask is not None
        os.write(master, b"y\n")  # before the question: no answer to it

        def person() -> None:
            shown = b""
            while b"Sign? [y/N] " not in shown:
                shown += os.read(master, 1000)
            os.write(master, typed.encode())

        typing = threading.Thread(target=person)
        typing.start()
        assert ask("Sign? [y/N] ") is answer
        typing.join()


def test_a_terminal_at_which_nobody_sits_refuses_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with at_a_terminal(monkeypatch):
        ask = terminal(ProgressView(), 0.05)
        assert ask is not None
        with pytest.raises(RefusedError, match="nobody answered"):
            ask("Sign? ")


def test_no_terminal_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert terminal(ProgressView(), 1) is None


def test_an_approver_signs_in_a_person_s_stead(
    tmp_path: Path, job: Job, board: MemoryVault, roster: Roster
) -> None:
    config = config_of(tmp_path, 'approvers = ["board", "absent"]')
    config.place.approvals.mkdir(parents=True)
    other = load_job(write_job(tmp_path, JOB.replace("seed = 7", "seed = 8")))
    (config.place.approvals / "other.approval").write_bytes(approve(other, "board", DAY, board))
    with pytest.raises(RefusedError, match="no approver has signed it"):
        agree(config, roster, job, None, today)
    (config.place.approvals / "this.approval").write_bytes(approve(job, "board", DAY, board))
    assert agree(config, roster, job, never, today).why == "board has approved it"
    # A name that the rules do not list approves nothing, whoever has its card.
    with pytest.raises(RefusedError, match="no approver has signed it"):
        agree(config_of(tmp_path, 'approvers = ["ann"]'), roster, job, None, today)


@pytest.mark.parametrize("kind", ["another signer", "another name", "changed", "not an approval"])
def test_a_forged_approval_does_not_count_and_blocks_nobody(
    tmp_path: Path, job: Job, board: MemoryVault, roster: Roster, kind: str
) -> None:
    mallory = MemoryVault.generate("mallory")
    bodies = {
        "another signer": approve(job, "board", DAY, mallory),
        "another name": approve(job, "mallory", DAY, board).replace(b'"mallory"', b'"board"'),
        "changed": approve(
            load_job(write_job(tmp_path, JOB.replace("seed = 7", "seed = 8"))), "board", DAY, board
        ),
        "not an approval": b"{}",
    }
    body = bodies[kind]
    if kind == "changed":
        record = json.loads(body)
        statement = {**record["statement"], "digest": job.digest().hex()}
        body = json.dumps({**record, "statement": statement}).encode()
    config = config_of(tmp_path, 'approvers = ["board"]')
    config.place.approvals.mkdir(parents=True)
    (config.place.approvals / "a.approval").write_bytes(body)
    with pytest.raises(
        RefusedError, match=r"no approver has signed it; a\.approval does not count"
    ):
        agree(config, roster, job, None, today)
    (config.place.approvals / "b.approval").write_bytes(approve(job, "board", DAY, board))
    found = agree(config, roster, job, never, today)
    assert found.approvers == ("board",)
    assert [remark.split(":")[0] for remark in found.remarks] == ["a.approval does not count"]


def test_whoever_puts_files_among_the_approvals_blocks_nobody_and_writes_on_no_screen(
    tmp_path: Path, job: Job, board: MemoryVault, roster: Roster
) -> None:
    config = config_of(tmp_path, 'approvers = ["board"]\napprovals = 1')
    folder = config.place.approvals
    folder.mkdir(parents=True)
    os.mkfifo(folder / "a.approval")  # nobody ever writes to it
    (folder / "b.approval").mkdir()
    (folder / "c\nboard has approved it\x1b[2J.approval").write_bytes(b"{}")
    (folder / "d.approval").write_bytes(b"x" * (1 << 15))
    for number in range(20):
        (folder / f"e{number}.approval").write_bytes(b"{}")
    with pytest.raises(RefusedError, match="has 0 of the 1") as caught:
        agree(config, roster, job, None, today)
    said = str(caught.value)
    assert "\n" not in said and "\x1b" not in said and "14 more files do not count" in said
    (folder / "z.approval").write_bytes(approve(job, "board", DAY, board))
    assert agree(config, roster, job, None, today).approvers == ("board",)


def test_an_approver_who_is_revoked_while_the_node_waits_approves_nothing(
    tmp_path: Path, job: Job, people: dict[str, MemoryVault]
) -> None:
    place = tmp_path / "roster"
    Roster.of([keys.card for keys in people.values()]).save(place)
    config = with_approvals(tmp_path, TWO, {"a": approve(job, "board", DAY, people["board"])})

    def wait(missing: str) -> bool:
        if "dpo does not" in missing or "no valid card of dpo" in missing:
            return False
        Roster.update(place, lambda known: known.revoke(people["dpo"].card, datetime.now(UTC)))
        body = approve(job, "dpo", DAY, people["dpo"])
        (config.place.approvals / "b.approval").write_bytes(body)
        return True

    with pytest.raises(RefusedError, match="the roster has no valid card of dpo"):
        agree(config, Roster.load(place), job, None, today, wait)


TWO = 'approvers = ["board", "dpo", "carol", "ann"]\napprovals = 2'


@pytest.fixture(scope="module")
def people(board: MemoryVault) -> dict[str, MemoryVault]:
    names = ("dpo", "carol", "ann", "mallory")
    return {"board": board} | {name: MemoryVault.generate(name) for name in names}


def with_approvals(folder: Path, rules: str, files: dict[str, bytes]) -> NodeConfig:
    config = config_of(folder, rules)
    config.place.approvals.mkdir(parents=True, exist_ok=True)
    for path in config.place.approvals.iterdir():
        path.unlink()
    for name, body in files.items():
        (config.place.approvals / f"{name}.approval").write_bytes(body)
    return config


def test_two_different_approvers_agree_and_nothing_else_does(
    tmp_path: Path, job: Job, people: dict[str, MemoryVault]
) -> None:
    known = Roster.of([keys.card for keys in people.values()])
    files = {name: approve(job, name, DAY, people[name]) for name in people}

    def refused(given: dict[str, bytes], rules: str = TWO) -> str:
        with pytest.raises(RefusedError, match="Nothing was shared") as caught:
            # A person at the terminal is not asked.
            agree(with_approvals(tmp_path, rules, given), known, job, never, today)
        return str(caught.value)

    board, dpo = files["board"], files["dpo"]
    found = agree(with_approvals(tmp_path, TWO, {"a": board, "b": dpo}), known, job, never, today)
    assert found.approvers == ("board", "dpo") and found.why == "board, dpo have approved it"
    said = refused({"a": board, "again": board})
    assert "has 1 of the 2 approvals" in said and "board (2030-05-17)" in said
    # Ann's node runs under her identity: she is not one of the two.
    assert "still possible: dpo, carol" in said and "mpc-train job approve" in said
    again = approve(job, "board", date(2030, 5, 16), people["board"])
    assert "has 1 of the 2" in refused({"a": board, "b": again})
    said = refused({"a": board, "mallory": files["mallory"], "ann": files["ann"]})
    assert "mallory.approval does not count: mallory is not an approver of this node" in said
    assert "ann.approval does not count: ann runs this node" in said
    operators = f'{TWO}\noperators = ["ann", "dpo"]'
    assert "dpo runs this node" in refused({"a": board, "b": dpo}, operators)
    together = f"{TWO}\nseparate = false"
    config = with_approvals(tmp_path, together, {"a": board, "b": files["ann"]})
    assert agree(config, known, job, never, today).approvers == ("board", "ann")
    without = known.remove("dpo")
    with pytest.raises(RefusedError, match="the roster has no valid card of dpo"):
        agree(with_approvals(tmp_path, TWO, {"a": board, "b": dpo}), without, job, None, today)


def test_an_approval_is_of_one_job_and_of_its_days(
    tmp_path: Path, job: Job, people: dict[str, MemoryVault]
) -> None:
    known = Roster.of([keys.card for keys in people.values()])
    board, dpo = people["board"], people["dpo"]
    first = approve(job, "board", DAY, board)
    rules = f"{TWO}\napprovals_valid_days = 30"
    other = load_job(write_job(tmp_path, JOB.replace("seed = 7", "seed = 8")))

    def said(second: bytes) -> str:
        with pytest.raises(RefusedError, match="has 1 of the 2") as caught:
            config = with_approvals(tmp_path, rules, {"a": first, "b": second})
            agree(config, known, job, None, today)
        return str(caught.value)

    assert "does not count" not in said(approve(other, "dpo", DAY, dpo))
    old = approve(job, "dpo", date(2030, 4, 16), dpo)
    assert "b.approval does not count: it is of 2030-04-16 and counts for 30 days" in said(old)
    for day in (date.min, date.max):  # nothing is added to the day of somebody else
        assert "does not count" in said(approve(job, "dpo", day, dpo))
    ahead = approve(job, "dpo", date(2030, 5, 19), dpo)
    assert "it bears the day 2030-05-19, and today is 2030-05-17" in said(ahead)
    for day in (date(2030, 4, 17), date(2030, 5, 18)):
        second = approve(job, "dpo", day, dpo)
        config = with_approvals(tmp_path, rules, {"a": first, "b": second})
        assert agree(config, known, job, None, today).approvers == ("board", "dpo")
    # The day is signed.
    forged = old.replace(b"2030-04-16", b"2030-05-16")
    with pytest.raises(RefusedError, match="the signature is not that of dpo's card"):
        config = with_approvals(tmp_path, rules, {"a": first, "b": forged})
        agree(config, known, job, None, today)


def test_a_node_waits_for_approvals_and_says_who_is_missing(
    tmp_path: Path, job: Job, people: dict[str, MemoryVault]
) -> None:
    known = Roster.of([keys.card for keys in people.values()])
    board, dpo = (approve(job, name, DAY, people[name]) for name in ("board", "dpo"))
    config, now = with_approvals(tmp_path, TWO, {}), [0.0]
    told: list[str] = []

    def sleep(time_s: float) -> None:
        """Others put files there meanwhile, the second one bit by bit."""
        now[0] += time_s
        if now[0] == 2:
            (config.place.approvals / "a.approval").write_bytes(board)
        if now[0] == 3:
            (config.place.approvals / "b.approval").write_bytes(dpo[:100])
        if now[0] == 4:
            (config.place.approvals / "b.approval").write_bytes(dpo)

    def waits(wait_s: float) -> Wait:
        return patience(told.append, wait_s, lambda: now[0], sleep)

    found = agree(config, known, job, None, today, waits(10))
    assert found.approvers == ("board", "dpo") and now == [4]
    assert all("of the 2 approvals" in line for line in told) and len(told) == 3
    assert "has 0 of the 2" in told[0] and "has 1 of the 2" in told[1]
    assert "b.approval does not count: is not an approval" in told[2]
    now[0] = 0.0
    with pytest.raises(RefusedError, match="has 0 of the 2"):
        agree(with_approvals(tmp_path, TWO, {}), known, job, None, today, waits(1))
    assert now == [1]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ('approvers = ["board"]\napprovals = 2', "2 are needed, and only 1 of the approvers"),
        (f'{TWO}\noperators = ["ann", "board", "dpo"]', "2 are needed, and only 1"),
        (f'{TWO}\njobs = ["{"0" * 64}"]', "makes a listed digest insufficient"),
        (f'{TWO}\noperators = ["carol"]', "this node is ann, which is not one of them"),
        (f"{TWO}\napprovals_valid_days = 0", "at least 1"),
        ("approvals = -1", "at least 0"),
    ],
)
def test_rules_that_nobody_can_satisfy_are_a_fault(tmp_path: Path, rules: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, rules)


def test_the_command_that_approves(tmp_path: Path, roster: Roster) -> None:
    path = write_job(tmp_path)
    vault = FileVault.create(tmp_path / "home", "board", PASSPHRASE)
    secret = tmp_path / "passphrase"
    secret.write_bytes(PASSPHRASE)
    secret.chmod(0o600)
    shown = mpc_train(
        *("job", "approve", path, "--home", tmp_path / "home"),
        *("--passphrase-file", secret, "--format", "json"),
    )
    assert shown.exit_code == 0, shown.stderr
    record = last_object(shown.stdout)
    body, job = Path(record["approval"]).read_bytes(), load_job(path)
    assert record["digest"] == job.digest().hex()
    rules = config_of(tmp_path, 'approvers = ["board"]').rules
    found = Approvals(rules, "ann", job.digest(), datetime.now(UTC).date())
    found.add("x", body, {"board": vault.card})
    assert list(found.valid) == ["board"]


def test_nothing_is_read_before_it_is_agreed_to(
    tmp_path: Path, job: Job, roster: Roster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job, its cautions and what was revealed before are shown; the table is not opened."""
    from mpc_train.commands.common import Format

    config = config_of(tmp_path)
    body, seen = job.to_bytes(), []

    def no(question: str) -> bool:
        seen.append(capsys.readouterr().err)
        return False

    guarded = _Guarded(
        config, roster, False, Events(Format.text), no, audit_log(tmp_path), node_vault(tmp_path)
    )
    with pytest.raises(RefusedError, match="was refused at the terminal"):
        guarded.prepare(body, roles_of(job))  # there is no ann.csv
    assert job.digest().hex() in seen[0]
    assert "  beware     7 of the held-out rows are cleo's" in seen[0]
    (tmp_path / "ann.csv").write_text("\n".join(csv_lines(40)))
    (tmp_path / "home").mkdir(exist_ok=True)
    agreed = _Guarded(
        config,
        roster,
        False,
        Events(Format.text),
        lambda _: True,
        audit_log(tmp_path / "again"),
        node_vault(tmp_path),
    )
    assert len(agreed.prepare(body, roles_of(job))) == 32
    assert "This node may sign: somebody at the terminal agreed" in capsys.readouterr().err


def test_a_contract_gives_the_roles_that_the_job_says(
    tmp_path: Path, job: Job, roster: Roster
) -> None:
    """What a person reads is the job, and what is signed is the contract."""
    from mpc_train.commands.common import Format

    audit = audit_log(tmp_path)
    roles = roles_of(job)
    guarded = _Guarded(
        config_of(tmp_path), roster, False, Events(Format.json), never, audit, node_vault(tmp_path)
    )
    for other in (
        replace(roles, dealer="ann", evaluators=("bob", "cleo")),
        replace(roles, evaluators=roles.evaluators[::-1]),
        replace(roles, recipients=(*roles.recipients, "bob")),
    ):
        with pytest.raises(RefusedError, match="roles in the contract differ"):
            guarded.prepare(job.to_bytes(), other)


def test_a_node_takes_the_part_that_it_was_started_for(
    tmp_path: Path, job: Job, roster: Roster
) -> None:
    from mpc_train.commands.common import Format

    audit = audit_log(tmp_path)
    guarded = _Guarded(
        config_of(tmp_path), roster, True, Events(Format.json), never, audit, node_vault(tmp_path)
    )
    with pytest.raises(RefusedError, match="ann was started as a dealer"):
        guarded.prepare(job.to_bytes(), roles_of(job))
    path = tmp_path / "dealer.toml"
    path.write_text(CONSENTING.replace('name = "ann"', 'name = "registry"'))
    guarded = _Guarded(
        load_node_config(path),
        roster,
        False,
        Events(Format.json),
        never,
        audit,
        node_vault(tmp_path),
    )
    with pytest.raises(RefusedError, match="registry was started as a party"):
        guarded.prepare(job.to_bytes(), roles_of(job))


def test_only_evaluators_say_that_they_learnt_losses_of_batches(job: Job) -> None:
    """No other node is told them, though the job allows all to know them."""
    said = {}
    for name in ("ann", "registry"):
        guarded: Any = _Guarded.__new__(_Guarded)
        reveal = msgspec.structs.replace(job.reveal, training_loss_every=10)
        guarded.job = msgspec.structs.replace(job, reveal=reveal)
        guarded._program = None
        guarded._config = SimpleNamespace(place=SimpleNamespace(name=name))
        said[name] = guarded.learnt()
    assert "training_loss" in said["ann"] and "training_loss" not in said["registry"]
    assert set(job.reveal.metrics) <= set(said["registry"])


def test_rules_are_not_asked_about(tmp_path: Path, roster: Roster) -> None:
    """A person is not asked to wave through what the rules refuse."""
    from mpc_train.commands.common import Format

    audit = audit_log(tmp_path)
    job = load_job(write_job(tmp_path, JOB.replace("batch_size = 16", "batch_size = 1")))
    guarded = _Guarded(
        config_of(tmp_path), roster, False, Events(Format.json), never, audit, node_vault(tmp_path)
    )
    with pytest.raises(RefusedError, match="least_batch_rows"):
        guarded.prepare(job.to_bytes(), roles_of(job))


def test_a_recipient_key_that_no_rule_lists_is_not_asked_about(tmp_path: Path, job: Job) -> None:
    from mpc_train.commands.common import Format

    card = MemoryVault.generate(job.recipients[0], "p384").card
    roster, audit = Roster.of([card]), audit_log(tmp_path)
    config, safe = config_of(tmp_path), node_vault(tmp_path)
    guarded = _Guarded(config, roster, False, Events(Format.json), never, audit, safe)
    with pytest.raises(RefusedError, match="recipient_keys"):
        guarded.prepare(job.to_bytes(), roles_of(job))
