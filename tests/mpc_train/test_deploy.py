"""The files of `examples/deploy` say what their README promises, and their commands run.

Without a container runtime: the commands are taken out of the compose file, the units and the
manifests, paths inside a container are replaced by those outside, and each service is started as a
process, as its runtime would start it.
"""

import configparser
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpc_train.errors import EXIT_STATUS
from tests.support.commands import options_of
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "examples" / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNIT = DEPLOY / "systemd" / "mpc-train@.service"
VERBS = {"coordinator": "coordinator", "registry-office": "dealer"}
LASTING = {"JobError", "DataError", "VaultError", "RefusedError", "ProtocolError", "RangeError"}
"""Errors of which a restart would meet the same again."""


def unit(path: Path) -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(path.read_text())
    return found


def objects() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from (each for each in yaml.safe_load_all(path.read_text()) if each)


def jobs() -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each["spec"] for each in objects() if each["kind"] == "Job"}


def started(script: str) -> list[str]:
    """The words after `exec` of a shell line."""
    return shlex.split(script.split("exec ", 1)[1])


def commands() -> dict[str, list[str]]:
    """What each file starts, from the verb on."""
    found = {f"compose {name}": service["command"] for name, service in SERVICES.items()}
    for name, spec in jobs().items():
        (node,) = spec["template"]["spec"]["containers"]
        found[f"kubernetes {name}"] = started(node["args"][0])[1:]
    lines = unit(UNIT)["Service"]["ExecStart"], unit(UNIT.with_name("resume.conf"))["Service"]
    for verb, line in (("party", lines[0]), ("dealer", lines[0]), ("party", lines[1]["ExecStart"])):
        script = shlex.split(line.replace("%i", verb))[2]
        found[f"systemd {verb} {len(found)}"] = started(script)[1:]
    return found


@pytest.mark.parametrize("words", commands().values(), ids=commands())
def test_commands_exist_with_their_options(words: list[str]) -> None:
    command, rest = options_of(words)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize("name", SERVICES)
def test_containers_can_do_little_and_see_only_their_own(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["mem_limit"] and service["pids_limit"] and not service.get("ports")
    assert service["command"][0] == VERBS.get(name, "party")
    for volume in service["volumes"]:
        where, inside, *mode = volume.split(":")
        assert where.split("/")[:3] == [".", "organisations", name]
        assert mode == ([] if inside == "/var/lib/mpc-train" else ["ro"])
    assert COMPOSE["networks"]["study"]["internal"] is True


@pytest.mark.parametrize("name", jobs())
def test_pods_can_do_little(name: str) -> None:
    spec = jobs()[name]["template"]["spec"]
    (node,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["terminationGracePeriodSeconds"] >= 60
    within = node["securityContext"]
    assert within["readOnlyRootFilesystem"] and not within["allowPrivilegeEscalation"]
    assert within["capabilities"] == {"drop": ["ALL"]}
    assert node["resources"]["limits"]["memory"] == node["resources"]["requests"]["memory"]
    assert "env" not in node, "a passphrase would be seen in the environment"
    secrets = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert [secret["secretName"] for secret in secrets] == [f"{name}-passphrase"]
    rule = jobs()[name]["podFailurePolicy"]["rules"][0]
    assert {EXIT_STATUS[error] for error in LASTING} <= set(rule["onExitCodes"]["values"])


def test_nobody_dials_a_node() -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in objects() if o["kind"] == "NetworkPolicy"}
    assert policies.keys() == jobs().keys()
    for name, policy in policies.items():
        labels = jobs()[name]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        assert ports == (set() if name == "coordinator" else {7700, 53})
        assert bool(policy["ingress"]) == (name == "coordinator")


def test_the_unit_is_hardened() -> None:
    service = unit(UNIT)["Service"]
    for key in (
        "NoNewPrivileges",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "RestrictSUIDSGID",
    ):
        assert service[key] == "yes", key
    assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""
    assert service["LoadCredential"].startswith("passphrase:")
    assert service["MemoryMax"] and service["LimitCORE"] == "0"
    assert int(service["TimeoutStopSec"]) >= 60 and service["KillSignal"] == "SIGTERM"
    kept = {int(status) for status in service["RestartPreventExitStatus"].split()}
    assert {EXIT_STATUS[error] for error in LASTING} <= kept
    # Statuses of lost machines and networks are restarted, and none is that the program lacks.
    assert kept.isdisjoint({7, 8}) and kept <= {1, 2, *EXIT_STATUS.values()}


def test_the_image_holds_no_secret_and_is_not_root() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copied = " ".join(line for line in lines if line.startswith("COPY"))
    assert not re.search(r"COPY (\.|examples|tests)|keys|passphrase", copied)
    users = [line for line in lines if line.startswith("USER")]
    assert users and users[-1] == "USER 10001:10001"
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", "\n".join(lines), re.M):
        for name in source.split():
            assert (ROOT / name).exists(), name


def outside(text: str, folder: Path, port: int) -> str:
    """What a service reads, with the places of its container replaced by those of this machine."""
    for inside, here in (
        ("/etc/mpc-train", folder / "config"),
        ("/var/lib/mpc-train", folder / "state"),
        ("/run/secrets/mpc-train", folder / "secrets"),
        ("/run/secrets", folder / "secrets"),
    ):
        text = text.replace(inside, str(here))
    text = text.replace("tcp://coordinator:7700", f"tcp://127.0.0.1:{port}")
    return text.replace("tcp://0.0.0.0:7700", f"tcp://127.0.0.1:{port}")


def line_of(name: str, folder: Path, port: int) -> str:
    """The shell line that starts a service: hospital A as its pod, B as its unit, the others as
    compose starts them."""
    if name == "hospital-a":
        (node,) = jobs()[name]["template"]["spec"]["containers"]
        text = node["args"][0]
    elif name == "hospital-b":
        line = unit(UNIT.with_name("resume.conf"))["Service"]["ExecStart"]
        text = shlex.split(line.replace("%i.toml", f"{name}.toml").replace("%i", "party"))[2]
        text = text.replace("$${CREDENTIALS_DIRECTORY}", "/run/secrets")
        text = text.replace("/opt/mpc-train/bin/", "")
    else:
        text = "exec mpc-train " + shlex.join(SERVICES[name]["command"])
    program = f"exec {shlex.quote(sys.executable)} -m mpc_train"
    return outside(text, folder, port).replace("exec mpc-train", program, 1)


@pytest.mark.slow
def test_the_rehearsal_runs_as_its_files_say(tmp_path: Path) -> None:
    out = tmp_path / "organisations"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    prepare = ["sh", str(DEPLOY / "compose" / "prepare.sh"), str(out)]
    made = subprocess.run(prepare, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    again = subprocess.run(prepare, env=environment, capture_output=True, text=True)
    assert again.returncode == 3 and "exists already" in again.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = {}
    for name in SERVICES:
        for path in (out / name / "config").glob("*.toml"):
            path.write_text(outside(path.read_text(), out / name, port))
        running[name] = subprocess.Popen(
            ["/bin/sh", "-c", line_of(name, out / name, port)],
            env=environment,
            cwd=out / name / "state",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ended = {name: child.communicate(timeout=4 * PATIENCE_S) for name, child in running.items()}
    for name, child in running.items():
        assert child.returncode == 0, (name, ended[name][1])
        assert json.loads(ended[name][0].splitlines()[-1])["status"] == "ok"
        passphrase = (out / name / "secrets" / "passphrase").read_text().strip()
        assert passphrase not in "".join(ended[name])
    assert list((out / "coordinator" / "state" / "runs").rglob("study-office.sealed"))
    assert list((out / "hospital-a" / "state" / "runs").rglob("model.sealed"))
