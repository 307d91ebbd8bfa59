"""What others get to know of a model in shares, and the job that they make of it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from torch import nn

from mpc_train.admission.load import load_job
from mpc_train.errors import ArtifactError, JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Serve
from mpc_train.shared.description import Description, read_description
from mpc_train.shared.measuring import measuring_job, write_job
from mpc_train.shared.permits import check_use
from tests.support.carried_models import write_carried
from tests.support.commands import last_object, mpc_train
from tests.support.jobs import column, job_toml, loaded, schema_toml
from tests.support.jobs import write_job as write_text
from tests.support.node_files import party_toml
from tests.support.preparation_case import JOB, PREPARE, prepared_job

SID = bytes(range(32)).hex()


def kept(job: Job) -> Job:
    """The job as one whose model stays in shares, and which dora may measure."""
    return msgspec.structs.replace(
        job,
        reveal=msgspec.structs.replace(job.reveal, model="shares", decimals=3),
        job=msgspec.structs.replace(job.job, recipients=()),
        serve=Serve(validators=("dora",)),
    )


def every_preparation(folder: Path) -> Job:
    return prepared_job(folder)


def one_owner(folder: Path) -> Job:
    """Nobody can lack a column where there is one owner: only declared cells are filled."""
    text = JOB.replace(
        'owners = ["ann", "bob", "cleo"]', 'owners = ["ann"]\nevaluators = ["ann", "bob"]'
    )
    return prepared_job(folder, PREPARE, text.replace(", bob = 90, cleo = 14", ""))


def weighted(folder: Path) -> Job:
    schema = schema_toml(
        column("age", range=[0, 120]), column("w", range=[0, 4]), column("ill", "boolean")
    )
    text = job_toml(label="ill", data='schema = "schema.toml"\nweight = "w"')
    return loaded(folder, text, schema)


def short_form(folder: Path) -> Job:
    text = job_toml(
        ['{ name = "age", center = 50.5, scale = 10, range = [0, 1e2] }', "dose"],
        label='{ name = "ill", classes = ["no", "y\\"es"] }',
    )
    return load_job(write_text(folder, text))


def array(folder: Path) -> Job:
    data = 'array = { name = "scan", shape = [1, 4, 4], range = [0, 255], scale = 255 }'
    return load_job(write_text(folder, job_toml(data=data)))


def own_network(folder: Path) -> Job:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    write_carried(folder / "net.json", module, (2,))
    return load_job(write_text(folder, job_toml(["a", "b"], model='graph = "net.json"')))


JOBS = [every_preparation, one_owner, weighted, short_form, array, own_network]


@pytest.mark.parametrize("made", JOBS, ids=lambda made: made.__name__)
def test_the_job_that_is_made_of_it_may_use_the_model(tmp_path: Path, made: object) -> None:
    model = kept(made(tmp_path))  # type: ignore[operator]
    described = Description.from_bytes(Description(model, SID).to_bytes())
    assert described == Description(model, SID)
    job = measuring_job(described, "measured", "dora", 60, ("accuracy", "auc"), ("dora",))
    written = write_job(job, tmp_path / "out.toml")
    assert written.to_bytes() == job.to_bytes()
    check_use(model, described.digest, written)
    assert written.reveal.decimals == 3 and written.reveal.metrics_to == ("dora",)
    assert written.serve is None and not written.recipients


def test_a_file_that_is_no_description_is_refused(tmp_path: Path) -> None:
    model = kept(short_form(tmp_path))
    good = Description(model, SID).to_bytes()
    path = tmp_path / "model.json"
    for wrong in (
        b"",
        good[:-3],
        good.replace(b'"sid"', b'"sad"'),
        good.replace(SID.encode(), b"00"),
        good.replace(b"shares 1", b"shares 2"),
        Description(short_form(tmp_path), SID).to_bytes(),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ArtifactError, match=r"model\.json.*mpc-train model show"):
            read_description(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_description(tmp_path / "nothing")


def test_a_job_that_contradicts_itself_is_not_written_silently(tmp_path: Path) -> None:
    described = Description(kept(short_form(tmp_path)), SID)
    job = measuring_job(described, "measured", "dora", 12, ("auc",))
    with pytest.raises(JobError, match="a metric needs 20 test rows"):
        write_job(job, tmp_path / "out.toml")


def test_the_command_reads_the_table_and_writes_the_job(tmp_path: Path) -> None:
    model = Description(kept(short_form(tmp_path)), SID)
    (tmp_path / "model.json").write_bytes(model.to_bytes())
    classes = ('"y""es"', "no")
    lines = ["age,dose,ill", *(f"{40 + n % 9},{n % 5},{classes[n % 2]}" for n in range(30))]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    config = tmp_path / "party.toml"
    config.write_text(party_toml("dora", data='measure-study = "table.csv"'))
    words = [
        "evaluate",
        tmp_path / "model.json",
        "--config",
        config,
        "--out",
        tmp_path / "job.toml",
    ]
    done = mpc_train(*words, "--metrics", "accuracy,auc", "--to", "dora", "--format", "json")
    assert done.exit_code == 0, done.output
    said = last_object(done.stdout)
    job = load_job(tmp_path / "job.toml")
    assert (said["rows"], said["model"], said["job_digest"]) == (
        30,
        model.digest,
        job.digest().hex(),
    )
    assert job.data.rows == {"dora": 30} and job.reveal.metrics_to == ("dora",)
    check_use(model.job, model.digest, job)
    (tmp_path / "job.toml").unlink()
    wrong = mpc_train(*words, "--metrics", "mse", "--format", "json")
    assert (
        wrong.exit_code == 3
        and "possible for a logistic model" in json.loads(wrong.stdout)["message"]
    )
    (tmp_path / "table.csv").write_text("age,dose,ill\n130,1,no\n")
    wrong = mpc_train(*words, "--metrics", "auc", "--format", "json")
    assert wrong.exit_code == 4 and "line 2: column 'age'" in json.loads(wrong.stdout)["message"]
    assert not (tmp_path / "job.toml").exists()
