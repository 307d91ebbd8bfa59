"""The examples' jobs and files are valid and fit each other; their data can be learnt from."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from mpc_train.admission.load import load_job
from mpc_train.admission.policy import read_policy
from mpc_train.admission.rules import check_rules
from mpc_train.gateway.instances import read
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.serving_file import load_serving_file
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.owners.table import load_table
from mpc_train.privacy.words import promises
from mpc_train.results.predictions import Predictions
from mpc_train.run.local import local_data
from mpc_train.run.node_config import load_coordinator_config, load_node_config
from mpc_train.serving.service_file import is_service_file
from mpc_train.tables.source import Source
from mpc_train.tables.typed import TypedTable
from tests.support.examples import EXAMPLES, copied_example

JOBS = ("breast_cancer", "digits", "diabetes", "serve")


@pytest.mark.parametrize("name", JOBS)
def test_the_script_writes_what_the_job_expects(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    path = copied_example(name, folder)
    runpy.run_path(str(folder / "make_data.py"), run_name="__main__")
    job = load_job(path)
    for owner, entry in local_data(path, job).items():
        table = load_table(entry, job, owner)
        assert table.rows == job.data.rows[owner]
        assert len(set(table.labels.tolist())) >= 2
    first = {path.name: path.read_bytes() for path in (folder / "data").iterdir()}
    runpy.run_path(str(folder / "make_data.py"), run_name="__main__")
    assert {path.name: path.read_bytes() for path in (folder / "data").iterdir()} == first


def test_the_roles_of_the_examples() -> None:
    cancer, digits, diabetes = (load_job(EXAMPLES / name / "job.toml") for name in JOBS[:3])
    assert (len(cancer.owners), len(cancer.evaluators), cancer.model.kind) == (3, 3, "logistic")
    assert cancer.dealer not in cancer.owners
    assert (len(digits.owners), digits.widths) == (2, (64, 64, 10))
    assert (len(diabetes.owners), len(diabetes.evaluators)) == (4, 2)
    assert diabetes.dealer in diabetes.owners
    assert diabetes.model.kind == "linear"


def test_the_statistics_are_of_the_same_clinics_and_columns() -> None:
    plain, regression = (
        load_job(EXAMPLES / "diabetes" / name) for name in ("job.toml", "statistics.toml")
    )
    assert (plain.owners, plain.data) == (regression.owners, regression.data)
    assert regression.reveal.statistics and plain.recipients == regression.recipients


def test_the_private_job_is_of_the_same_tables_and_people() -> None:
    plain, private = (
        load_job(EXAMPLES / "breast_cancer" / name) for name in ("job.toml", "private.toml")
    )
    assert plain.data == private.data and plain.model == private.model
    same = ("owners", "evaluators", "dealer", "recipients")
    assert all(getattr(plain, key) == getattr(private, key) for key in same)


def test_what_one_may_write_is_what_the_job_promises() -> None:
    """The numbers in the example of privacy.md and of the example's README, and who is left out."""
    job = load_job(EXAMPLES / "breast_cancer" / "private.toml")
    page = (EXAMPLES.parent / "mpc_train" / "docs" / "privacy.md").read_text()
    text = " ".join(page[page.index("### What one may write") :].replace("> ", "").split())
    said = " ".join(promises(job))
    for words in (
        "differentially private with ε = 3 and δ = 0.0001 for one row",
        "the probability that they do is at most 20.1 times",
    ):
        assert words in said and words in text
    assert "plus 0.0001" in text and "plus 0.0001 (δ)" in said
    assert job.dealer == "registry-office" and "or all evaluators together" in said
    assert "registry office with one of the hospitals, or all three hospitals together" in text
    assert len(job.evaluators) == 3 and "the row had contributed nothing" in said
    readme = " ".join((EXAMPLES / "breast_cancer" / "README.md").read_text().split())
    assert total_steps(job) == 10 and "in ten steps" in readme
    assert "ε = 3, δ = 0.0001 for one row" in readme


def test_the_nodes_of_trust_fit_the_job() -> None:
    folder = EXAMPLES / "trust"
    job = load_job(load_coordinator_config(folder / "coordinator" / "node.toml").job)
    assert (job.reveal.threshold, len(job.recipients)) == (2, 3)
    for name in job.nodes:
        path = folder / name / "node.toml"
        config = load_node_config(path)
        assert config.place.name == name
        if config.policy is None:
            check_rules(config.rules, job, name)
        else:
            rules = read_policy(folder / name / "policy.toml").rules
            check_rules(rules, job, name)
            assert rules.approvals == len(rules.approvers) == 2
        if name in job.owners:
            assert config.source(job.name).file == "vault:patients"


def test_three_machines_fit_the_job() -> None:
    folder = EXAMPLES / "three_machines"
    coordinator = load_coordinator_config(folder / "coordinator.toml")
    job = load_job(coordinator.job)
    assert job.digest() == load_job(EXAMPLES / "breast_cancer" / "job.toml").digest()
    names = {path.stem for path in folder.glob("*.toml")} - {"coordinator"}
    assert names == set(job.nodes)
    for name in names:
        config = load_node_config(folder / f"{name}.toml")
        assert config.place.name == name
        assert config.coordinator == coordinator.place.name
        assert config.coordinator_address == coordinator.listen
        check_rules(config.rules, job, name)
        if name in job.owners:
            config.source(job.name)


def test_the_files_of_serve_fit_each_other(
    tmp_path: Path,
) -> None:
    job = load_job(copied_example("serve", tmp_path))
    runpy.run_path(str(tmp_path / "make_data.py"), run_name="__main__")
    coordinators = {
        name: load_coordinator_config(tmp_path / f"coordinator-{name}.toml")
        for name in ("training", "serving", "measuring")
    }
    assert load_job(coordinators["training"].job).digest() == job.digest()
    assert is_service_file(coordinators["serving"].job)
    assert len({(each.place.name, each.listen) for each in coordinators.values()}) == 1
    serve = job.serve
    assert serve is not None and job.stays_shared
    for name in {*job.nodes, *serve.clients, *serve.validators}:
        config = load_node_config(tmp_path / f"{name}.toml")
        assert config.place.name == name
        assert config.coordinator == coordinators["serving"].place.name
        assert config.coordinator_address == coordinators["serving"].listen
        if name in job.nodes:
            check_rules(config.rules, job, name)
            # Hospital D's measurement, too.
            assert {*config.rules.validators, *config.rules.recipients} == {*serve.validators}
    source = load_node_config(tmp_path / "hospital-d.toml").source(f"measure-{job.name}")
    assert Path(source.file).exists()
    new = Asked(job)
    (found,) = new.tables(Source(str(tmp_path / "data" / "new-patients.csv")), ["patient"])
    assert found.rows == 40
    (found,) = new.tables(read(job, (tmp_path / "patient.json").read_bytes()))
    assert found.rows == 1


def test_the_files_of_homomorphic_fit_each_other(tmp_path: Path) -> None:
    copied_example("homomorphic", tmp_path)
    runpy.run_path(str(tmp_path / "make_data.py"), run_name="__main__")
    path = tmp_path / "training.toml"
    job = load_job(path)
    for owner, entry in local_data(path, job).items():
        assert load_table(entry, job, owner).rows == job.data.rows[owner]
    ((name, place),) = load_serving_file(tmp_path / "serving.toml").models.items()
    assert (name, place.clients) == (job.name, ("clinic",))
    assert len(Description.of(name, job).columns.names) == 10
    for name in (*place.clients, *job.recipients):
        assert load_node_config(tmp_path / f"{name}.toml").place.name == name
    new = Source(str(tmp_path / "data" / "new-patients.csv"))
    (found,) = Asked(job).tables(new, ["patient"])
    assert found.rows == 100


class Asked(Predictions):
    def __init__(self, job: Job) -> None:
        self.job = job

    def predicted(self, table: TypedTable) -> list[list[Any]]:
        raise AssertionError
