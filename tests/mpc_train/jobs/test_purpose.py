"""What a job says it is for: checked, shown, signed with the rest, limited by a node's rules."""

from datetime import date
from pathlib import Path

import pytest

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.admission.rules import check_rules
from mpc_train.checks.check_purpose import MAX_NAMES, MAX_SENTENCE
from mpc_train.errors import JobError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.results.report import describe
from tests.support.commands import as_json
from tests.support.jobs import JOB, allowing, loaded, write_job

PURPOSE = """
[purpose]
purposes = ["tumour-research", "teaching"]
description = "A classifier of tumours"
categories = ["health"]
columns = { age = ["identifier", "health"] }
legal_basis = "consent of the patients"
valid_until = 2030-06-30
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return loaded(tmp_path, JOB + PURPOSE)


def test_it_is_shown_and_signed(tmp_path: Path, job: Job) -> None:
    assert job.categories == ("health", "identifier")
    assert job_from_bytes(job.to_bytes()) == job
    shown = describe(job)
    for words in (
        "for tumour-research, teaching: A classifier of tumours",
        "kinds of data: health, identifier, health (age)",
        "legal basis: consent of the patients",
        "may be signed until 2030-06-30 (UTC)",
    ):
        assert words in shown
    for change in ("teaching", "health", "patients", "classifier", "2030"):
        other = PURPOSE.replace(change, "2031" if change == "2030" else "other")
        assert loaded(tmp_path, JOB + other).digest() != job.digest(), change
    record = as_json("job", "check", write_job(tmp_path, JOB + PURPOSE))
    assert record["purpose"]["purposes"] == ["tumour-research", "teaching"]
    assert record["purpose"]["valid_until"] == "2030-06-30"
    assert record["categories"] == ["health", "identifier"]
    shown = describe(loaded(tmp_path))
    assert "purpose    not stated by a name" in shown and "kinds of data: not stated" in shown


def test_every_fault_of_the_section_at_once(tmp_path: Path) -> None:
    text = f"""
[purpose]
purposes = ["Tumour research", "teaching", "teaching"]
description = "{"a" * (MAX_SENTENCE + 1)}"
categories = [{", ".join(f'"c{number}"' for number in range(MAX_NAMES + 1))}]
columns = {{ size = ["health"], age = ["health", "health"] }}
"""
    with pytest.raises(JobError) as caught:
        load_job(write_job(tmp_path, JOB + text))
    said = str(caught.value)
    for words in (
        "purpose.purposes: 'Tumour research' is not a name",
        f"purpose.categories: at most {MAX_NAMES} names",
        "purpose.columns.size: the job has no column of this name",
        "purpose.columns.age: 'health' appears twice",
        f"purpose.description: at most {MAX_SENTENCE} characters",
    ):
        assert words in said
    with pytest.raises(JobError, match="valid_until"):
        load_job(write_job(tmp_path, f"{JOB}[purpose]\nvalid_until = 'tomorrow'\n"))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"purposes": ("tumour-research",)}, "teaching is a purpose of the job but is not listed"),
        ({"purposes": ()}, "tumour-research, teaching is a purpose of the job but is not listed"),
        ({"categories": ("health",)}, "identifier is a kind of data that it uses, but is not"),
    ],
)
def test_rules_limit_purposes_and_kinds_of_data(
    job: Job, limits: dict[str, tuple[str, ...]], said: str
) -> None:
    day = date(2030, 6, 30)
    check_rules(allowing(job), job, "registry", day)
    check_rules(allowing(job, purposes=("teaching", "tumour-research")), job, "registry", day)
    with pytest.raises(RefusedError, match=said):
        check_rules(allowing(job, **limits), job, "registry", day)


def test_who_limits_them_wants_them_stated(tmp_path: Path) -> None:
    job = loaded(tmp_path)
    check_rules(allowing(job), job, "registry")
    with pytest.raises(RefusedError) as caught:
        check_rules(allowing(job, purposes=("teaching",), categories=()), job, "registry")
    assert "the job states no purposes in [purpose]" in str(caught.value)
    assert "the job states no categories in [purpose]" in str(caught.value)


def test_a_job_is_not_signed_after_its_last_day(job: Job) -> None:
    rules = allowing(job)
    check_rules(rules, job, "registry", date(2030, 6, 30))
    with pytest.raises(RefusedError, match="may be signed until 2030-06-30") as caught:
        check_rules(rules, job, "registry", date(2030, 7, 1))
    assert "today is 2030-07-01" in str(caught.value)


def test_a_coordinator_does_not_propose_it(tmp_path: Path) -> None:
    write_job(tmp_path, f"{JOB}[purpose]\nvalid_until = 2020-01-01\n")
    config = tmp_path / "coordinator.toml"
    config.write_text(
        'node = { name = "desk", home = "home" }\n'
        'network = { listen = "tcp://127.0.0.1:*" }\nrun = { job = "job.toml" }\n'
    )
    record = as_json("coordinator", "--config", config)
    assert record["status"] == "RefusedError"
    assert "may be signed until 2020-01-01" in record["message"]
