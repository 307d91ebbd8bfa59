"""What goes wrong at nodes that were started by hand, and what each node says of it.

Every case ends in one line of error at every node that is concerned, with the documented exit
status, with no process and no half-written file left. And in none of them,
nor in a run that goes well, is anything secret to be found afterwards.
"""

import base64
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch
import torch
from typer.testing import Result

from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from protocols.sealing.bundle import pack_bundle, unpack_bundle
from tests.support.commands import as_json, mpc_train
from tests.support.local_run import port_in_use
from tests.support.patience import wait_until
from tests.support.study import NODES, PASSPHRASE, Ended, Study, find_secrets


@pytest.fixture
def study(tmp_path: Path, homes: Path) -> Iterator[Study]:
    yield from _study(tmp_path, homes)


@pytest.fixture
def long_study(tmp_path: Path, homes: Path) -> Iterator[Study]:
    yield from _study(tmp_path, homes, epochs=10_000)


def _study(folder: Path, homes: Path, epochs: int = 1) -> Iterator[Study]:
    shutil.copytree(homes, folder / "homes")
    made = Study(folder, epochs)
    try:
        yield made
    finally:
        made.close()


def check(
    study: Study, ended: dict[str, Ended], status: dict[str, int], said: dict[str, str]
) -> None:
    """Each node's exit status and its one error; nothing sealed, nothing secret left."""
    shown = {name: (end.status, end.stderr) for name, end in ended.items()}
    assert {name: end.status for name, end in ended.items()} == status, shown
    for name, end in ended.items():
        assert len(end.errors) == 1, shown
        message = end.record["message"]  # of several lines, where several things are wrong
        assert f"error: {message}" in end.stderr
        assert said[name] in message, shown
    assert not list(study.folder.rglob("*.sealed"))
    assert not list(study.folder.rglob("*.safetensors"))
    assert study.leaks() == set()


def edited(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def cell(column: int, text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        cells = lines[4].split(",")
        cells[column] = text
        lines[4] = ",".join(cells)
        path.write_text("\n".join(lines))

    return change


def written(data: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_bytes(data)

    return change


def instead_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DATA_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "there is no such file"),
    "unreadable": (instead_a_directory, "cannot be read (Is a directory)"),
    "not-text": (written(b"\xff\xfe\x00"), "is not utf-8 text"),
    "empty": (written(b""), "the file is empty"),
    "wrong-column": (edited("dose", "dosis"), "line 1: missing column 'dose'"),
    "columns-differ": (edited("age,dose,ill", "age,dose,ill,sex"), "column 'sex' is not in"),
    "non-number": (cell(1, "much"), "line 5: column 'dose': not a number"),
    "nan": (cell(1, "NaN"), "line 5: column 'dose': not a number (NaN)"),
    "infinity": (cell(1, "inf"), "line 5: column 'dose': infinite"),
    "out-of-range": (cell(0, "130"), "line 5: column 'age': outside the declared range"),
    "beyond-the-limit": (cell(1, "17"), "line 5: column 'dose': after centring and scaling"),
    "no-class": (cell(2, "2"), "line 5: column 'ill': not one of the declared levels"),
}
FAST_DATA_FAULTS = ("missing",)
"""From the error on all of them are one case; what they say is tested in test_data.py as well,
and a bad cell in a local run in test_run.py."""


def check_blamed(study: Study, name: str, status: int, message: str, others: str) -> None:
    """One node ends with `status` and `message`; all others say that it aborted, and why."""
    nodes = ("ann", "bob", "registry", "desk")
    statuses = dict.fromkeys(nodes, 8) | {name: status}
    said = dict.fromkeys(nodes, f"aborted by {name}: {others}") | {name: message}
    check(study, study.ended(), statuses, said)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in FAST_DATA_FAULTS else pytest.mark.slow)
        for kind in DATA_FAULTS
    ],
)
@pytest.mark.slow
def test_bad_data_at_one_node(study: Study, kind: str) -> None:
    change, message = DATA_FAULTS[kind]
    change(study.csv("bob"))
    study.coordinator()
    study.nodes()
    check_blamed(study, "bob", 4, message, "data (its data do not fit the job")


@pytest.mark.slow
def test_who_cannot_start_is_missed_in_time(study: Study) -> None:
    """A wrong passphrase at one node, a card altered on its disk at another: neither arrives."""
    wrong = study.folder / "wrong"
    wrong.write_text("incorrect donkey\n")
    wrong.chmod(0o600)
    roster = study.homes / "registry" / "roster" / "ann.card"
    text = roster.read_text()
    roster.write_text(text.replace('name = "ann"', 'name = "eve"'))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        study.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    study.node("ann")
    study.node("bob", passphrase=wrong)
    study.node("registry")
    ended = study.ended("bob", "registry")
    # Ann has been dialling for a while: she is there as soon as there is somebody to answer.
    study.join_s = 15
    study.coordinator(listen=study.address)
    ended |= study.ended()
    check(
        study,
        ended,
        {"bob": 5, "registry": 5, "ann": 8, "desk": 7},
        {
            "bob": "the passphrase is wrong",
            "registry": "ann.card",
            "ann": "aborted by desk: peer-timeout (a node did not connect",
            "desk": "did not arrive within 15 s: bob, registry",
        },
    )
    assert not any("donkey" in end.stderr for end in ended.values())


@pytest.mark.slow
def test_a_card_of_other_keys_stops_the_run(study: Study) -> None:
    """Bob has made new keys; everybody has his new card but Ann."""
    shutil.rmtree(study.homes / "bob")
    FileVault.create(study.homes / "bob", "bob", PASSPHRASE.encode())
    old = Roster.load(study.homes / "ann" / "roster")
    new = old.add(Card.load(study.homes / "bob" / "bob.card"), replace=True)
    for name in ("bob", "registry", "desk"):
        new.save(study.homes / name / "roster")
    study.coordinator()
    study.nodes()
    both = (
        f"bob: here {old.card('bob').fingerprint}, at desk {new.card('bob').fingerprint}. "
        "Ask the card's owner"
    )
    check_blamed(study, "ann", 6, both, "contract (the contract, the cards or the constants")


@pytest.mark.slow
def test_a_job_that_was_altered_is_refused(study: Study) -> None:
    """The coordinator proposes another job than the one whose digest Bob wrote into his rules."""
    record = as_json("job", "check", study.job)
    altered = study.folder / "altered.toml"
    altered.write_text(study.job.read_text().replace("seed = 3", "seed = 4"))
    study.coordinator(altered)
    study.node("ann")
    study.node("registry")
    study.node("bob", rules=f'jobs = ["{record["digest"]}"]')
    others = "policy (its own rules forbid the job, or nobody there agreed to it"
    check_blamed(study, "bob", 6, "is not listed under jobs", others)


def test_a_port_in_use_at_a_party(study: Study) -> None:
    with port_in_use() as address:
        study.address = "tcp://127.0.0.1:9"
        study.node("bob", network=f'listen = "{address}"')
        ended = study.ended()
    check(study, ended, {"bob": 7}, {"bob": address})


@pytest.mark.slow
def test_no_coordinator_answers(study: Study) -> None:
    study.address, study.join_s = "tcp://127.0.0.1:9", 2
    study.node("bob")
    check(
        study,
        study.ended(),
        {"bob": 7},
        {"bob": "127.0.0.1:9 within 2 s: nothing listens on port 9"},
    )


@pytest.mark.slow
def test_who_leaves_before_the_start_may_come_back(study: Study) -> None:
    """Ctrl-C at one node and kill -9 at another while others are missing; both start again."""
    study.coordinator()

    def await_here(*names: str) -> None:
        wait_until(
            lambda: told(study, "gathering")[-1]["here"] == [*names], f"only {names} to be here"
        )
        assert told(study, "gathering")[-1]["missing"] == sorted(set(NODES) - set(names))

    await_here()
    study.node("ann")
    await_here("ann")
    study.node("bob")
    await_here("ann", "bob")
    study.running["ann"].send_signal(signal.SIGINT)
    ann = study.ended("ann")["ann"]
    assert (ann.status, ann.errors) == (
        130,
        ["error: interrupted; nothing was left half-written"],
    )
    await_here("bob")
    study.running["bob"].kill()
    study.running.pop("bob").wait()
    await_here()
    study.nodes()
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    left = {event["node"]: event.get("code") for event in told(study, "left")}
    assert left == {"ann": "interrupted", "bob": None}
    # The nodes that came before the last one were told the same.
    heard = [study.output(name, "out").read_text() for name in NODES]
    assert any('{"event":"gathering","here":["' in text for text in heard), heard


@pytest.mark.slow
def test_who_leaves_before_the_start_is_waited_for(study: Study) -> None:
    """A bad cell at bob's after the job was proposed: the others keep what they have prepared, and
    bob's operator corrects the table. Then ann's process is killed, and started again as well."""
    study.return_s = study.join_s
    good = study.csv("bob").read_text()
    change, message = DATA_FAULTS["out-of-range"]
    change(study.csv("bob"))
    study.coordinator()
    study.nodes()
    bob = study.ended("bob")["bob"]
    assert bob.status == 4 and message in bob.errors[0], bob
    await_missing(study, "bob")
    study.running["ann"].kill()
    study.running.pop("ann").wait()
    await_missing(study, "ann", "bob")
    study.csv("bob").write_text(good)
    study.node("ann")
    study.node("bob")
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    assert [event["node"] for event in told(study, "left")] == ["bob", "ann"]
    assert told(study, "left")[0]["code"] == "data"
    assert len(told(study, "proposed")) == 2
    # The dealer stayed: it was shown the job once, and signed it twice.
    assert len(told(study, "proposed", "registry")) == 1
    assert len(told(study, "signed", "registry")) == 2
    assert study.leaks() == set()


@pytest.mark.slow
def test_who_does_not_come_back_is_named(study: Study) -> None:
    study.return_s = 1
    DATA_FAULTS["missing"][0](study.csv("bob"))
    study.coordinator()
    study.nodes()
    ended = study.ended()
    assert ended["bob"].status == 4
    assert "did not come back within 1 s: bob" in ended["desk"].errors[0]
    for name in ("ann", "registry"):
        assert "aborted by desk: peer-timeout" in ended[name].errors[0]


@pytest.mark.slow
def test_who_refuses_the_job_is_not_waited_for(study: Study) -> None:
    study.return_s = study.join_s
    study.coordinator()
    for name in NODES:
        study.node(name, rules="least_batch_rows = 1000" if name == "bob" else "")
    ended = study.ended()
    assert ended["bob"].status == 6, ended
    for name in ("ann", "registry", "desk"):
        assert "aborted by bob: policy" in ended[name].errors[0]


def told(study: Study, kind: str, name: str = "desk") -> list[dict[str, Any]]:
    """The events of this kind that a node has told."""
    whole = study.output(name, "out").read_text().rpartition("\n")[0].splitlines()
    return [event for event in map(json.loads, whole) if event.get("event") == kind]


def await_missing(study: Study, *names: str) -> None:
    def missing() -> bool:
        events = told(study, "gathering")
        return bool(events) and events[-1]["missing"] == [*names]

    wait_until(missing, f"only {names} to be missing")


@pytest.mark.slow
def test_a_party_that_dies_in_the_middle(long_study: Study) -> None:
    long_study.coordinator()
    long_study.nodes()
    long_study.wait_for_steps()
    seen = [
        "\0".join([*process.cmdline(), *process.environ().values()]).encode()
        for process in (psutil.Process(one.pid) for one in long_study.running.values())
    ]
    assert long_study.leaks(*seen) == set()
    victim = long_study.running.pop("bob")
    long_study.killed.add("bob")
    victim.kill()
    victim.wait()
    ended = long_study.ended()
    for name, end in ended.items():
        assert end.status == 8, (name, end.stderr)
        assert len(end.errors) == 1
        assert "bob" in end.errors[0]
    assert not list(long_study.folder.rglob("*.sealed"))
    assert long_study.leaks() == set()


@pytest.mark.slow
def test_a_good_run_leaves_nothing_secret(good_study: Study) -> None:
    assert len(list(good_study.secrets.glob("*.words"))) == 4
    assert all(path.stat().st_size > 10_000 for path in good_study.secrets.glob("[abr]*.words"))
    assert good_study.leaks() == set()
    for name in ("ann", "bob", "registry"):
        assert good_study.output(name, "err").read_text() == "", (
            "no warning in a run that goes well"
        )


@pytest.mark.parametrize(
    ("spell", "kind"),
    [
        (lambda word: b"value " + word, "words"),
        (lambda word: b"x" + word[::-1], "words, big-endian"),
        (lambda word: b"0x" + word.hex().upper().encode(), "hexadecimal"),
        (lambda word: b"key=" + base64.b64encode(b"ab" + word), "base64"),
        (lambda word: str(int.from_bytes(word, "little", signed=True)).encode(), "numbers"),
    ],
)
def test_the_search_finds_what_is_there(
    good_study: Study, spell: Callable[[bytes], bytes], kind: str
) -> None:
    for word in (sorted(good_study._words())[100], bytes.fromhex("4a1b2c0300000000")):
        assert kind in find_secrets([b"log: " + spell(word) + b" end"], [], {word})
    age = good_study.csv("bob").read_text().splitlines()[7].split(",")[0]
    assert good_study.leaks(f"row 7: tensor([{float(age):.4f}])".encode()) == {"numbers"}
    assert good_study.leaks(f"asked for {PASSPHRASE}".encode()) == {"passphrase"}


def opened(study: Study, sealed: Path, out: Path, who: str = "office", **options: Path) -> Result:
    passphrase = options.get("passphrase", study.passphrase)
    return mpc_train(
        *("open", sealed, "--home", study.homes / who, "--out", out),
        *("--passphrase-file", passphrase, "--format", "json"),
    )


@pytest.mark.slow
def test_only_a_recipient_with_all_envelopes_opens_the_model(
    good_study: Study, tmp_path: Path
) -> None:
    (whole,) = good_study.left.glob("desk/*/office.sealed")
    out = tmp_path / "out"
    record, envelopes = unpack_bundle(whole.read_bytes())
    lacking = tmp_path / "lacking.sealed"
    lacking.write_bytes(pack_bundle(record, envelopes[:1]))
    refused = opened(good_study, lacking, out)
    assert refused.exit_code == 9
    assert "holds envelopes of ann; expected one of each of ann, bob" in refused.stderr
    damaged = bytearray(whole.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    lacking.write_bytes(damaged)
    assert opened(good_study, lacking, out).exit_code == 9
    wrong = tmp_path / "wrong"
    wrong.write_text("incorrect donkey")
    wrong.chmod(0o600)
    assert opened(good_study, whole, out, passphrase=wrong).exit_code == 5
    foreign = opened(good_study, whole, out, "bob")
    assert foreign.exit_code == 9
    assert "it opens with that identity" in foreign.stderr
    assert not out.exists()

    (delivered,) = good_study.left.glob("ann/*/model.sealed")
    for sealed, who in ((whole, "office"), (delivered, "ann")):
        assert opened(good_study, sealed, out / who, who).exit_code == 0
        module = torch.nn.Linear(2, 1)
        module.load_state_dict(safetensors.torch.load_file(out / who / "model.safetensors"))
        assert os.stat(out / who / "model.safetensors").st_mode & 0o077 == 0
    manifests = [json.loads((out / who / "manifest.json").read_text()) for who in ("office", "ann")]
    assert manifests[0]["metrics"] == manifests[1]["metrics"]
