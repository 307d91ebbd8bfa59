"""What the README says is true: its commands, options, files, tables and fields."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.main import get_command

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.cli import app
from mpc_train.errors import DOCTOR_STATUS, EXIT_STATUS
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.node.collect import found_by, summarise
from mpc_train.run.node_config import load_node_config
from tests.architecture import PACKAGES, ROOMS
from tests.support.commands import mpc_train, options_of
from tests.support.patience import PATIENCE_S
from tests.support.study import Study

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
THREE = (ROOT / "examples" / "three_machines" / "README.md").read_text()
PAGES = sorted((ROOT / "mpc_train" / "docs").glob("*.md"))
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("*/README.md"),
    *PAGES,
    *(ROOT / "examples").glob("*/README.md"),
]
MAX_LINES = 150


def page(name: str) -> str:
    return (ROOT / "mpc_train" / "docs" / f"{name}.md").read_text()


def code(text: str) -> list[str]:
    """The lines of all indented blocks, without their indentation."""
    return [line.strip() for line in text.splitlines() if re.match(r" {4,}\S", line)]


def quoted(text: str) -> list[str]:
    """What stands between backquotes, lines joined."""
    return re.findall(r"`([^`]+)`", " ".join(text.split()))


def commands(text: str) -> list[list[str]]:
    """Every `mpc-train …` and `launch.py …` in the text, as words; comments cut off."""
    found = []
    for line in [*code(text), *quoted(text)]:
        words = line.split(" #")[0].split()
        while words and (words[0].endswith("python") or words[0] == "python3"):
            words = words[1:]
        if words[:2] == ["launch.py", "--script"]:
            found.append(["script", *words[2:]])
        elif words and words[0] == "launch.py":
            found.append(["run", *words[1:]])
        elif words and words[0] == "mpc-train" and len(words) > 1:
            found.append(words[1:])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist_with_their_options(path: Path) -> None:
    for words in commands(path.read_text()):
        command, rest = options_of(words)
        known = {name for parameter in command.params for name in parameter.opts}
        for word in rest:
            assert not word.startswith("-") or word in known, words


def test_the_readme_can_be_read_at_once() -> None:
    assert len(README.splitlines()) <= MAX_LINES
    for path in PAGES:
        assert f"(mpc_train/docs/{path.name})" in README, path.name


def test_rooms_are_those_of_the_architecture() -> None:
    """Each package's own README lists its rooms."""
    for package in PACKAGES:
        text = (ROOT / package / "README.md").read_text()
        listed = set(re.findall(r"`([\w/]+)/`", text))
        rooms = {
            room.removeprefix(f"{package}.").replace(".", "/")
            for room in ROOMS
            if room.startswith(f"{package}.") and (ROOT / room.replace(".", "/")).is_dir()
        }
        assert rooms <= listed, rooms - listed


def test_the_documents_show_every_verb() -> None:
    shown = {tuple(words[:2]) for path in DOCUMENTS for words in commands(path.read_text())}
    for words in (
        ("identity", "new"),
        ("identity", "card"),
        ("identity", "rotate"),
        ("identity", "revoke"),
        ("roster", "revoke"),
        ("roster", "add"),
        ("job", "check"),
        ("schema", "infer"),
        ("schema", "digest"),
        ("schema", "check"),
        ("party", "--config"),
        ("dealer", "--config"),
        ("coordinator", "--config"),
        ("open", "model.sealed"),
        ("data", "check"),
        ("job", "approve"),
        ("predict", "runs/study"),
        ("policy", "sign"),
        ("policy", "verify"),
        ("policy", "show"),
        ("doctor", "--config"),
    ):
        assert words in shown, words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_and_files_exist(path: Path) -> None:
    text = path.read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in code(text) if line.startswith("make ")}
    targets |= {words.split()[1] for words in quoted(text) if words.startswith("make ")}
    for target in targets:
        if "=" not in target:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    prose = re.sub(
        r"^ {4,}.*$", "", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), flags=re.M
    )
    places = re.findall(r"\]\(([^)#:]+)\)", prose)
    places += [
        word for word in quoted(text) if re.fullmatch(r"(examples|tests|mpc_train)/[\w./]+", word)
    ]
    places += re.findall(r"(?:python|launch\.py) ((?:examples|tests)/[\w./]+)", text)
    for place in places:
        assert (ROOT / place).exists() or (path.parent / place).exists(), place


def test_the_table_of_exit_statuses() -> None:
    rows = {
        int(number): words
        for number, words in re.findall(r"\| (\d+) \| ([^|]+) \|", page("machines"))
    }
    assert set(rows) == {0, 1, 2, *EXIT_STATUS.values(), *DOCTOR_STATUS.values()}
    # The words of the help and of the module say the same: each shares one with the table.
    epilogue = mpc_train("--help").stdout
    flat = " ".join(epilogue.split())
    for number, words in rows.items():
        said = re.search(rf"\b{number} ([a-z ]+)", flat)
        assert said is not None, number
        shared = set(re.findall(r"[a-z]{4,}", words)) & set(re.findall(r"[a-z]{4,}", said[1]))
        assert shared, (number, words, said[1])


def test_the_fields_of_a_run() -> None:
    text = page("machines")
    paragraph = text[text.index("## One JSON object") : text.index("| exit status")]
    named = set(re.findall(r"`(\w+)`", paragraph))
    job = load_job(ROOT / "examples" / "breast_cancer" / "job.toml")
    nothing: dict[str, dict[str, object]] = {name: {} for name in job.nodes}
    fields = {*summarise(job, nothing), *found_by(job, nothing)}
    later = {"model", "sealed", "twin_metrics", "max_weight_difference", "joined_rows"}
    later |= {"unmatched_records", "preparation", "instead", "federated"}
    assert named - fields == later
    assert {"status", "parties", "steps", "train_seconds", "step_seconds_median"} <= named
    assert {"bytes_sent", "rounds", "metrics"} <= named


def test_the_readme_s_node_file_allows_the_demo_s_job(tmp_path: Path) -> None:
    block = README[README.index("       node = {") : README.index("5. A neutral")]
    (tmp_path / "party.toml").write_text(dedent(block))
    config = load_node_config(tmp_path / "party.toml")
    job = load_job(ROOT / "examples" / "breast_cancer" / "job.toml")
    check_rules(config.rules, job, config.place.name)
    assert config.source(job.name).file == str(tmp_path / "patients.csv")


def job_of_the_readme() -> str:
    text = page("job")
    block = text[text.index("## A job") : text.index("[job-keys.md](job-keys.md) has every key")]
    return "\n".join(line[4:] for line in block.splitlines() if line.startswith("    "))


def test_the_job_is_that_of_the_example_but_for_its_features(tmp_path: Path) -> None:
    """The README lists one feature of thirty; whatever else it says is the example's job."""
    path = tmp_path / "job.toml"
    path.write_text(job_of_the_readme())
    job = load_job(path)
    example = load_job(ROOT / "examples" / "breast_cancer" / "job.toml")
    assert job.features == example.features[:1]
    same = ("owners", "evaluators", "dealer", "recipients", "label")
    assert {key: getattr(job, key) for key in same} == {key: getattr(example, key) for key in same}
    assert job.data.rows == example.data.rows
    assert (job.model, job.reveal) == (example.model, example.reveal)
    assert job.train.epochs == example.train.epochs
    assert job.train.optimizer == example.train.optimizer


def test_every_key_of_a_job_is_described() -> None:
    """The README sends its reader to `mpc_train/jobs/job.py` for keys and defaults."""
    source = (ROOT / "mpc_train" / "jobs" / "job.py").read_text()
    sections = [field for field in Job.__struct_fields__ if field != "version"]
    for section in sections:
        assert f"`[{section}]`" in source, section


def test_the_sample_report_is_that_of_the_example() -> None:
    job = load_job(ROOT / "examples" / "breast_cancer" / "job.toml")
    assert f": {total_steps(job)} steps, median" in README
    for metric in job.reveal.metrics:
        assert f"Metric    {metric} 0.9" in README
    for node in job.nodes:
        assert f"{node} " in README


class Journey:
    """The README's commands as a user types them, in a directory of his own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "MPC_TRAIN_HOME": str(folder / "home")}
        self.environment["PYTHONPATH"] = str(ROOT)
        (folder / "secret").write_text("a passphrase for tests\n")
        (folder / "secret").chmod(0o600)

    def type(self, line: str) -> str:
        assert line in code(README), f"the README does not say: {line}"
        program = f"{sys.executable} -m mpc_train"
        typed = re.sub(r"^mpc-train", program, line)
        if line.startswith(("mpc-train identity new", "mpc-train open")):
            typed += " --passphrase-file secret"
        done = subprocess.run(  # noqa: S602 - a README's line, as a shell reads it
            typed,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout


def test_the_journey_of_one_organisation(tmp_path: Path) -> None:
    journey = Journey(tmp_path)
    made = journey.type("mpc-train identity new hospital-a")
    fingerprint = re.findall(r"(?:[0-9a-f]{4}-){7,}[0-9a-f]{4}", made)
    assert len(fingerprint) == 1, "`identity new` prints a fingerprint"
    journey.type("mpc-train identity card > hospital-a.card")
    assert fingerprint[0] in journey.type("mpc-train roster add *.card")
    shutil.copy(ROOT / "examples" / "breast_cancer" / "job.toml", tmp_path)
    shutil.copy(ROOT / "examples" / "three_machines" / "hospital-a.toml", tmp_path / "party.toml")
    said = journey.type("mpc-train job check --config party.toml job.toml")
    assert "allow the job to hospital-a" in said
    assert "logistic regression" in said
    assert "to hospital-a, study-office" in said
    private = (tmp_path / "home" / "hospital-a.identity").read_bytes()
    assert b"a passphrase for tests" not in private


def test_a_run_and_plain_pytorch(good_study: Study, tmp_path: Path) -> None:
    """Party, dealer, coordinator in real processes; `open`; and the README's own Python."""
    study, ended = good_study, good_study.good
    assert {end.record["status"] for end in ended.values()} == {"ok"}
    (sealed,) = study.left.glob("desk/*/office.sealed")
    shutil.copy(sealed, tmp_path / "model.sealed")
    journey = Journey(tmp_path)
    shutil.copytree(study.homes / "office", tmp_path / "home")
    (tmp_path / "secret").write_text(study.passphrase.read_text())
    journey.type("mpc-train open model.sealed")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["metrics"] == ended["ann"].record["metrics"]

    lines = [line for line in code(README) if "torch" in line or "load_state_dict" in line]
    program = "\n".join(line for line in lines if not line.startswith((".venv", "make")))
    assert "load_state_dict" in program
    done = subprocess.run(
        [sys.executable, "-c", program.replace("Linear(30, 1)", "Linear(2, 1)")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.isfinite(state["weight"]).all()


def test_what_every_command_prints_for_machines(tmp_path: Path) -> None:
    """`--format json` makes the last line of every command one JSON object: all have it."""
    root: Any = get_command(app)
    leaves = []
    for name, command in root.commands.items():
        leaves += [(name, inner) for inner in getattr(command, "commands", {"": command}).values()]
    assert len(leaves) == 57
    for name, leaf in leaves:
        assert "--format" in {option for one in leaf.params for option in one.opts}, name
        assert leaf.help and leaf.help.strip().endswith("."), name
