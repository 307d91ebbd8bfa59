"""`mpc-train doctor` as people and programs run it, and the other side of it."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpc_train.commands.operating import doctor
from parties.agreement.contract import CONTRACT_VERSION
from parties.doctor.listening import Listener
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from parties.wire.zmq_transport import CurveKeys
from tests.support.commands import ROOT, last_object, mpc_train
from tests.support.http_proxy import HttpProxy
from tests.support.node_files import party_toml
from tests.support.patience import PATIENCE_S

PASSPHRASE = b"correct horse battery staple"
NAMES = ("ann", "bob", "desk")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, FileVault]]:
    """Homes of ann, bob and the coordinator, each with all cards, and the passphrase's file."""
    root = tmp_path_factory.mktemp("doctor")
    vaults = {name: FileVault.create(root / name, name, PASSPHRASE) for name in NAMES}
    for name in NAMES:
        Roster.of([vault.card for vault in vaults.values()]).save(root / name / "roster")
    (root / "passphrase").write_bytes(PASSPHRASE)
    (root / "passphrase").chmod(0o600)
    return root, vaults


@pytest.fixture
def folder(homes: tuple[Path, dict[str, FileVault]]) -> Path:
    return homes[0]


@contextmanager
def answering(vault: FileVault, allowed: FileVault) -> Iterator[str]:
    """Where the node of `vault` answers the doctor of `allowed`."""
    keys = CurveKeys(vault.card.curve, vault.curve_secret())
    names = {allowed.card.name: allowed.card.curve}
    over = threading.Event()
    with Listener(keys, names, "tcp://127.0.0.1:*", CONTRACT_VERSION) as listener:

        def serve() -> None:
            while not over.is_set():
                listener.attend(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.address
        finally:
            over.set()
            thread.join(PATIENCE_S)


def coordinator_file(folder: Path) -> Path:
    path = folder / "coordinator.toml"
    path.write_text(
        '[node]\nname = "desk"\nhome = "desk"\nrun_dir = "desk/runs"\n'
        'passphrase_file = "passphrase"\n'
        '[network]\nlisten = "tcp://127.0.0.1:*"\n[run]\njob = "job.toml"\n'
    )
    return path


def party_file(folder: Path, address: str, name: str = "ann", network: str = "") -> Path:
    node = f'home = "{name}"\nrun_dir = "{name}/runs"\npassphrase_file = "passphrase"'
    text = party_toml(name, node=node).replace("tcp://127.0.0.1:9", address)
    path = folder / f"{name}.toml"
    path.write_text(f"{text}\n[network]\n{network}\n")
    return path


@contextmanager
def listening(config: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`mpc-train doctor --listen` as a process, and where it listens."""
    argv = [sys.executable, "-m", "mpc_train", "doctor", "--config", str(config), "--listen"]
    process = subprocess.Popen(
        [*argv, "--format", "json"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["event"] == "listening", said
        yield said["address"], process
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def checks(record: dict[str, Any]) -> dict[str, str]:
    return {each["check"]: each["level"] for each in record["findings"]}


def test_two_sides_examine_each_other(folder: Path) -> None:
    """Through a proxy, to the listener of the coordinator, which says who came and who did not."""
    with (
        listening(coordinator_file(folder)) as (address, process),
        HttpProxy({"study.invalid": address}, user="ann", password="pale ale") as proxy,
    ):
        (folder / "proxy.password").write_text("pale ale")
        (folder / "proxy.password").chmod(0o600)
        network = (
            f'proxy = "{proxy.url.replace("//", "//ann@")}"\n'
            'proxy_password_file = "proxy.password"\nlisten = "tcp://127.0.0.1:*"'
        )
        config = party_file(folder, "tcp://study.invalid:7700", network=network)
        shown = mpc_train("doctor", "--config", config, "--megabytes", 1, "--format", "json")
        record = last_object(shown.stdout)
        assert shown.exit_code == 0, record
        assert record["status"] == "ok" and record["problems"] == 0
        assert set(checks(record)) == {
            *("versions", "processor", "memory", "entropy", "open files", "disk", "cards", "port"),
            *("name", "reach", "key", "release", "clock", "round trip", "sending", "receiving"),
        }
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert '{"event":"visit","node":"ann"}' in out
        assert process.returncode == 0
        assert "pale ale" not in shown.output + out


def test_text_says_what_to_do_and_the_status_where(folder: Path) -> None:
    """Nobody listens: the problem has a remedy, and its status is the network's."""
    config = party_file(folder, "tcp://127.0.0.1:1", "bob")
    shown = mpc_train("doctor", "--config", config)
    assert shown.exit_code == 12
    lines = shown.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("PROBLEM   reach"))
    assert "nothing listens on port 1" in lines[at] and "-> check the port" in lines[at + 1]
    assert lines[-1].startswith("NOT PASSED: 1 problem")


def test_a_key_that_is_not_the_expected_one(homes: tuple[Path, dict[str, FileVault]]) -> None:
    """bob's card in place of the coordinator's: status 13, as the two sides do not fit."""
    folder, vaults = homes
    with answering(vaults["desk"], vaults["ann"]) as address:
        config = party_file(folder, address)
        config.write_text(config.read_text().replace('name = "desk"', 'name = "bob"'))
        shown = mpc_train("doctor", "--config", config, "--format", "json")
    assert shown.exit_code == 13
    record = last_object(shown.stdout)
    assert checks(record)["key"] == "problem" and record["status"] == "problems"


def test_a_peer_that_listens_is_tried_by_its_card(
    homes: tuple[Path, dict[str, FileVault]],
) -> None:
    folder, vaults = homes
    with answering(vaults["bob"], vaults["ann"]) as address:
        config = party_file(folder, "tcp://127.0.0.1:1")
        where = address.removeprefix("tcp://")
        shown = mpc_train(
            *("doctor", "--config", config, "--peer", f"bob={where}", "--peer", f"cleo={where}"),
            *("--megabytes", 1, "--format", "json"),
        )
    record = last_object(shown.stdout)
    texts = [each["text"] for each in record["findings"] if each["check"] == "key"]
    assert texts[0].startswith("bob at ") and "holds the key of its card" in texts[0]
    assert "no card of 'cleo'" in texts[1]


def test_without_an_identity_the_rest_is_examined(folder: Path) -> None:
    config = party_file(folder, "tcp://127.0.0.1:1")
    config.write_text(config.read_text().replace('passphrase_file = "passphrase"', ""))
    shown = mpc_train("doctor", "--config", config, "--format", "json")
    assert shown.exit_code == 11
    levels = checks(last_object(shown.stdout))
    assert levels["identity"] == "problem" and levels["memory"] and levels["reach"] == "problem"


def test_directories_of_the_file_are_examined(folder: Path) -> None:
    config = party_file(folder, "tcp://127.0.0.1:1")
    (folder / "ann" / "runs").mkdir(mode=0o755, exist_ok=True)
    (folder / "ann" / "runs").chmod(0o755)
    shown = mpc_train("doctor", "--config", config)
    (folder / "ann" / "runs").chmod(0o700)
    assert shown.exit_code == 11 and "others may enter" in shown.stdout


def test_without_a_file_this_machine_and_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mpc_train("doctor").exit_code == 0
    shown = mpc_train("doctor", "--coordinator", "nowhere.invalid:7700")
    assert shown.exit_code == 12 and "does not resolve" in shown.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["--listen"],
        ["--peer", "bob=127.0.0.1:1"],
        ["--idle", "5"],
        ["--coordinator", "study.example.org"],
        ["--coordinator", "a:0"],
        ["--megabytes", "0.5"],
        ["--config", "x.toml", "--idle", "0"],
        ["--config", "x.toml", "--peer", "127.0.0.1:1"],
        ["--config", "x.toml", "--listen", "--idle", "5"],
    ],
)
def test_wrong_options(words: list[str]) -> None:
    assert mpc_train("doctor", *words).exit_code == 2


def test_a_node_that_does_not_listen_cannot_answer(folder: Path) -> None:
    shown = mpc_train("doctor", "--config", party_file(folder, "tcp://127.0.0.1:1"), "--listen")
    assert shown.exit_code == 7 and "write listen under [network]" in shown.stderr


def test_each_event_of_a_listener_has_its_words() -> None:
    assert all("{}" in text for text in doctor._EVENTS.values())
    assert set(doctor._EVENTS) == {"visit", "started", "refused"}
