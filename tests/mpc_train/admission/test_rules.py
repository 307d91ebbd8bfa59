"""Jobs that would give a row away, and what stops them: default rules, or a word of caution.

The first test carries the attack out on the twin; the others are its relatives. Each job here is
one that loads: nothing but a node's rules stands between it and the data.
"""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch

from mpc_train.admission import rules
from mpc_train.admission.cautions import FEW_STEPS, cautions
from mpc_train.admission.effective_rows import effective_rows, lightest
from mpc_train.admission.load import load_job
from mpc_train.admission.rules import PrivacyRules, check_rules
from mpc_train.errors import JobError, RefusedError
from mpc_train.jobs import outputs
from mpc_train.jobs.audience import RANGE, TRAINING_COUNTS, listed
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import leaving, words_for, words_of
from mpc_train.jobs.reveal import METRICS, Metric
from mpc_train.jobs.schedule import batches
from mpc_train.owners.table import load_table
from mpc_train.run.local import LocalRules, local_rules
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.tables.source import Source
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import train_twin
from tests.support import columns_case
from tests.support.carried_models import write_carried
from tests.support.cases import CASES, run_case
from tests.support.commands import mpc_train
from tests.support.jobs import (
    JOB,
    SCHEMA_FILE,
    allowing,
    changed,
    column,
    duplicates_toml,
    loaded,
    replaced,
    schema_toml,
    with_data,
    write_job,
)
from tests.support.preparation_case import prepared_job
from tests.support.private import PRIVATE

OPTIMIZER = 'optimizer = { name = "sgd", learning_rate = 0.5, momentum = 0.9 }'
FORGETS = "optimizer = { learning_rate = 1.25, weight_decay = 0.8 }"
"""Rate times decay is 1: after a step nothing but its gradient is in the weights."""
PLAIN = JOB.replace('"accuracy", "auc"', "")
GRAPH = 'kind = "logistic"\ngraph = "model.json"'


def job_of(folder: Path, *changes: tuple[str, str], text: str = PLAIN) -> Job:
    return loaded(folder, changed(*changes, text=text))


def refused(job: Job, me: str = "bob", **changes: Any) -> str:
    with pytest.raises(RefusedError, match="Nothing was shared") as caught:
        check_rules(allowing(job, **changes), job, me)
    return str(caught.value)


def test_the_attack_is_real_and_refused_by_name(tmp_path: Path) -> None:
    """One row a step, and rate times decay 1: weight / bias is the last row of the schedule."""
    job = load_job(CASES / "row" / "job.toml")
    tables = [
        load_table(Source(str(CASES / "row" / "data" / f"{owner}.csv")), job, owner)
        for owner in job.owners
    ]
    twin = train_twin(job, tables, initial_weights(job))
    (row,) = batches(job, 0)[-1]
    stolen = twin.state["weight"].reshape(-1) / twin.state["bias"]
    everything = np.concatenate([table.features for table in tables])
    np.testing.assert_allclose(stolen, everything[row], rtol=1e-4)
    for node in job.nodes:
        assert "a step takes 1 row, least_batch_rows = 8" in refused(job, node)
        said = refused(job, node, least_batch_rows=0)
        assert "the result is 1 row in effect, least_effective_rows = 10" in said
    assert "a step takes 1 row: nodes with default rules refuse it" in cautions(job)


@pytest.mark.slow
def test_a_local_run_refuses_it_as_well(tmp_path: Path) -> None:
    run = run_case("row", tmp_path)
    assert (run.status, run.record["status"]) == (6, "RefusedError")
    assert "least_batch_rows = 8" in run.record["message"]
    assert not list(run.folder.rglob("*.sealed"))


SUMS = {
    "the last batch alone": ((OPTIMIZER, FORGETS),),
    "the first batch alone, which decay blows up": (
        (OPTIMIZER, "optimizer = { learning_rate = 100, weight_decay = 1 }"),
    ),
    "one step of a whole epoch in which one row of bob's is": (
        ("epochs = 4", "epochs = 1"),
        ("bob = 30", "bob = 2"),
        ("test_fraction = 0.25", "test_fraction = 0"),
        ("batch_size = 16", "batch_size = 72"),
    ),
    "a class that counts nothing": (("seed = 7", "seed = 7\nloss = { positive_weight = 0 }"),),
    "a class that counts all": (("seed = 7", "seed = 7\nloss = { positive_weight = 64 }"),),
    "one row of bob's trains": (("bob = 30", "bob = 1"),),
    "few rows of bob's train": (("bob = 30", "bob = 9"),),
    "adam with an ε that leaves decay at full force": (
        (
            OPTIMIZER,
            'optimizer = { name = "adam", learning_rate = 0.1, weight_decay = 0.5, epsilon = 0.05, '
            "betas = [0, 0.9] }",
        ),
        ("[reveal]", "[fixed_point]\ngradient_limit = 1\n[reveal]"),
    ),
}


@pytest.mark.parametrize("attack", SUMS)
def test_a_result_of_few_rows_of_ours_is_refused(tmp_path: Path, attack: str) -> None:
    job = job_of(tmp_path, *SUMS[attack])
    assert "least_effective_rows = 10" in refused(job)
    assert "of bob's in effect" in refused(job)
    assert any(said.startswith("the result is in effect ") for said in cautions(job))
    check_rules(allowing(job, least_effective_rows=0), job, "bob")


def test_no_seed_makes_it_look_otherwise(tmp_path: Path) -> None:
    """Whichever rows the seed puts into the last batch."""
    for seed in range(40):
        job = job_of(tmp_path, (OPTIMIZER, FORGETS), ("seed = 7", f"seed = {seed}"))
        assert "least_effective_rows" in refused(job)


def test_a_harmless_job_passes_without_a_word(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    for node in job.nodes:
        check_rules(allowing(job), job, node)
    assert cautions(job) == []


def norm(momentum: float) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(2, 4),
        torch.nn.BatchNorm1d(4, momentum=momentum),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 1),
    )


def carried(folder: Path, module: torch.nn.Module, *changes: tuple[str, str]) -> Job:
    write_carried(folder / "model.json", module, (2,))
    return job_of(folder, ('kind = "logistic"', GRAPH), *changes)


def test_the_running_means_of_a_norm_are_a_result_too(tmp_path: Path) -> None:
    """With momentum 1 they are those of the last batch."""
    assert "least_effective_rows" in refused(carried(tmp_path, norm(1.0)))
    job = carried(tmp_path, norm(0.05))
    check_rules(allowing(job), job, "bob")


def test_a_dropped_value_may_be_the_one_that_all_other_rows_need(tmp_path: Path) -> None:
    """Of the values that a row needs only so many are there: one row may have them, others not."""
    layers = torch.nn.Linear(2, 4), torch.nn.Dropout(0.75), torch.nn.Linear(4, 1)
    job = carried(tmp_path, torch.nn.Sequential(*layers))
    plain = carried(tmp_path, torch.nn.Sequential(layers[0], layers[2]))
    assert [lightest(job), lightest(plain)] == [Fraction(1, 4), Fraction(1)]
    found, whole = effective_rows(job), effective_rows(plain)
    assert found.pooled == pytest.approx(1 + (whole.pooled - 1) / 4)
    assert found.owners["bob"] == pytest.approx(1 + (whole.owners["bob"] - 1) / 4)
    assert "least_effective_rows" in refused(job)


def test_weights_that_somebody_chose_are_named(tmp_path: Path) -> None:
    """A unit that is active for one row alone: no public number shows it."""
    hidden = torch.nn.Linear(2, 4)
    with torch.no_grad():
        hidden.bias.fill_(-60)
    gate = torch.nn.Sequential(hidden, torch.nn.ReLU(), torch.nn.Linear(4, 1))
    said = cautions(carried(tmp_path, gate))
    assert any(
        "weights that its author chose: such weights can single out a row" in s for s in said
    )
    start = 'warm_start = { source = "ann", frozen = ["bias"] }'
    said = cautions(job_of(tmp_path, ("seed = 7", f"seed = 7\n{start}")))
    assert any("training starts from weights that ann chose" in line for line in said)
    assert any("1 of 2 tensors are frozen" in line for line in said)


def test_what_can_know_rows_by_heart_is_named(tmp_path: Path) -> None:
    wide = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    assert "257 weights for 75 training rows: it can memorise rows" in cautions(
        carried(tmp_path, wide)
    )

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(30, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.table(x[:, 0:1].long()).flatten(1)
            return found

    ids = ("center = 50, scale = 10.0, range = [0, 120]", "range = [0, 29]")
    found = cautions(carried(tmp_path, Table(), ids))
    assert any("a table of 30 values for 75 training rows" in line for line in found)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("seed = 7", "seed = 7\nloss = { balanced = true }"), "each class counts the same"),
        (("epochs = 4", "epochs = 1"), "few steps make up the result"),
        ((OPTIMIZER, "optimizer = { learning_rate = 4 }"), "may forget earlier rows"),
        (("[reveal]", "[reveal]\nleast_test_rows = 10\ntraining_loss_every = 2"), "revealed loss"),
    ],
)
def test_what_depends_on_the_data_is_named(
    tmp_path: Path, change: tuple[str, str], word: str
) -> None:
    path = write_job(tmp_path, PLAIN.replace(*change))
    assert any(word in line for line in cautions(load_job(path)))
    shown = mpc_train("job", "check", path)
    assert shown.exit_code == 0
    assert "  beware     " in shown.stdout and word in shown.stdout


def test_few_steps_are_no_worry_where_noise_bounds_what_they_say(tmp_path: Path) -> None:
    few = load_job(write_job(tmp_path, PRIVATE.replace("epochs = 4", "epochs = 1")))
    assert effective_rows(few).steps < FEW_STEPS
    assert not any("few steps" in line for line in cautions(few))


def test_inputs_that_few_rows_have_are_named(tmp_path: Path) -> None:
    schema = schema_toml(
        column("ward", "category", levels=["a", "b", "c"]),
        column("town", "category", levels=["x", "y", "z"], missing=[""]),
        column("age", range=[0, 120]),
        column("ill", "boolean"),
    )
    (tmp_path / "schema.toml").write_text(schema)
    text = with_data(f"{SCHEMA_FILE}\nlimit = 120", PLAIN)
    pairs = [[f"ward={ward}", f"town={town}"] for ward in "abc" for town in "xyz"]

    def said(steps: str, *, limit: str = "limit = 120") -> str:
        steps = f"[prepare]\nmissing = 'mean'\n{steps}\n[train]"
        job = job_of(tmp_path, ("[train]", steps), ("limit = 120", limit), text=text)
        return "\n".join(cautions(job))

    many = said(f"interactions = {pairs[:8]}")
    assert "8 inputs are combinations of two categories, for 75 training rows" in many
    for few in (pairs[:7], [*pairs[:7], ["ward=a", "age"], ["age", "age"]]):
        assert "combinations of two" not in said(f"interactions = {few}")
    assert "inputs of 'age' may be as large as 120: " in said("")
    standard = "columns.age.scale = 'standard'"
    assert "may be as large" not in said(standard)
    assert "may be as large" not in said("columns.age.clip = [0, 16]")
    clipped = said(f"{standard}\ncolumns.age.clip = [110, 120]")
    assert "'age' is clipped to 110 … 120 of 0 … 120: " in clipped
    assert "is clipped" not in said(f"{standard}\ncolumns.age.clip = [108, 120]")


def test_two_owners_one_of_whom_gets_the_result(tmp_path: Path) -> None:
    text = PLAIN.replace('["ann", "bob", "cleo"]', '["ann", "bob"]').replace(", cleo = 30", "")
    assert "ann gets the result and knows all rows but bob's" in cautions(
        job_of(tmp_path, text=text)
    )


def test_metrics_over_few_rows_of_ours_are_refused(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    said = refused(job, "cleo")
    assert "only 7 of the rows that metrics are taken over are cleo's" in said
    assert any("7 of the held-out rows are cleo's" in line for line in cautions(job))
    check_rules(allowing(job), job, "registry")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("least_group = 1", "groups of 1 row"),
        ("least_test_rows = 2", "metrics are allowed over 2 rows"),
        (
            'least_group = 2\n[prepare]\nmissing = "mean"\nscale = "declared"',
            "means of 2 rows may fill missing cells",
        ),
        ("least_test_rows = 3\nfolds = 20\nleast_group = 1", "metrics are allowed over 3 rows"),
    ],
)
def test_a_job_does_not_lower_what_a_node_demands(tmp_path: Path, more: str, said: str) -> None:
    """Folds of a few rows, groups of one, metrics over two, and means that fill cells."""
    job = load_job(write_job(tmp_path, f"{JOB}{more}\n"))
    assert said in refused(job, "registry")


def test_a_decision_over_few_rows_is_refused_as_a_metric_is(tmp_path: Path) -> None:
    metrics, stops = 'metrics = ["accuracy", "auc"]', "early_stopping.fraction = 0.3"
    text = JOB.replace(metrics, "least_test_rows = 2").replace("seed = 7", f"seed = 7\n{stops}")
    assert "accuracy" not in text and stops in text
    said = refused(load_job(write_job(tmp_path, text)), "registry")
    assert "metrics are allowed over 2 rows, least_test_rows = 20" in said


def test_a_fold_or_a_metric_of_one_row_is_no_job(tmp_path: Path) -> None:
    for more in ("least_test_rows = 1", "least_test_rows = 2\nfolds = 75"):
        with pytest.raises(JobError):
            load_job(write_job(tmp_path, f"{JOB}{more}\n"))


def test_an_owner_of_columns_cannot_weigh_rows_away(tmp_path: Path) -> None:
    text = columns_case.weighted().replace("least_rows = 20", "least_rows = 40")
    job = load_job(columns_case.write_job(tmp_path, "nobody", text))
    assert "least_effective_rows" in refused(job, "bank", least_test_rows=5)
    assert any("rows may have weight 0" in line for line in cautions(job))
    even = load_job(columns_case.write_job(tmp_path, "nobody", text.replace("[0, 4]", "[2, 4]")))
    check_rules(allowing(even, least_test_rows=5, least_effective_rows=8), even, "bank")


# What leaves, and the word that allows it.


def jobs_of_every_kind(folder: Path) -> list[Job]:
    """Jobs that together have every output that there is."""
    watched = (
        "seed = 7",
        "seed = 7\nguard = { every = 3 }\nearly_stopping = { fraction = 0.3 }",
    )
    newton = ("epochs = 4\nbatch_size = 16\n" + OPTIMIZER, 'optimizer = { name = "newton" }')
    losses = "least_test_rows = 10\ntraining_loss_every = 2"
    found = [
        job_of(folder, watched, ("[reveal]", f"[reveal]\n{losses}"), text=PLAIN),
        job_of(folder, newton, ("seed = 7", ""), ("[reveal]", "[reveal]\nstatistics = true")),
    ]
    for kind, metrics in METRICS.items():
        quoted = ", ".join(f'"{metric}"' for metric in metrics)
        change: tuple[tuple[str, str], ...] = ()
        text = JOB
        more = f"metrics = [{quoted}]\nper_party = [{quoted}]\n"
        more += "least_test_rows = 7\nleast_group = 1\nfolds = 3\n"
        if kind in ("poisson", "gamma"):
            more, change = f"metrics = [{quoted}]\n", (newton, ("seed = 7", ""))
            label = '{ name = "ill", range = [0.5, 9] }'
            text = JOB.replace('label = "ill"', f"label = {label}")
        extra = {"softmax": "\nclasses = 2", "mlp": "\nhidden = [4]\nclasses = 2"}.get(kind, "")
        found.append(
            job_of(
                folder,
                ('kind = "logistic"', f'kind = "{kind}"{extra}'),
                ('metrics = ["accuracy", "auc"]', more),
                *change,
                text=text,
            )
        )
    found += [
        load_job(columns_case.write_job(folder, membership)) for membership in ("holders", "nobody")
    ]
    found.append(loaded(folder, duplicates_toml({"ann": 30, "bob": 20}, 1)))
    found.append(prepared_job(folder))
    return found


def test_every_output_has_its_word_and_is_refused_without_it(tmp_path: Path) -> None:
    seen: set[str] = set()
    for job in jobs_of_every_kind(tmp_path):
        names = {output.name for output in agreed_outputs(job)}
        assert names <= set(leaving(job))
        permissive = {
            "least_test_rows": 1,
            "least_group": 1,
            "least_effective_rows": 0,
            "least_batch_rows": 0,
        }
        check_rules(allowing(job, **permissive), job, "nobody")
        for output in leaving(job):
            words = words_for(job, output)
            assert words, f"no rule speaks of {output}"
            for word in words:
                seen.add(word.word if word.key != "recipients" else "the model")
                if word.key == "always":
                    continue
                lists = {key: tuple(words_of(job, key)) for key in ("metrics", "disclosures")}
                lists["recipients"] = job.recipients
                lists[word.key] = tuple(name for name in lists[word.key] if name != word.word)
                said = refused(job, "nobody", **permissive, **lists)
                assert word.word in said and f"is not listed under {word.key}" in said
    known = {*get_args(Metric), *get_args(outputs.OverFolds), *get_args(outputs.Disclosure)}
    # Whether a value left the ring's range is asked of nobody, but named, and can be switched off.
    # Federated jobs, which reveal nothing else, are tested in federated/test_job.py; counts of the
    # training rows, which leave only where drift is watched, in jobs/test_serve.py.
    assert seen == {*known, RANGE, "the model"} - {"federated", "sizes", TRAINING_COUNTS}


def test_means_over_folds_do_not_escape(tmp_path: Path) -> None:
    text = replaced('metrics = ["accuracy", "auc"]', 'metrics = ["accuracy"]\nfolds = 3')
    job = load_job(write_job(tmp_path, text))
    assert "cv_accuracy" in listed(job)
    said = refused(job, "registry", metrics=("accuracy",))
    assert "cv_accuracy would be revealed but is not listed under metrics" in said
    check_rules(allowing(job, metrics=("accuracy", "cv_accuracy")), job, "registry")


def test_a_tensor_cannot_hide_a_metric_behind_its_name(tmp_path: Path) -> None:
    job = carried(tmp_path, torch.nn.Sequential(torch.nn.Linear(2, 1)))
    entries = tuple(
        msgspec.structs.replace(entry, name="accuracy" if "bias" in entry.name else entry.name)
        for entry in job.graph.entries
    )
    assert job.model.network is not None
    graph = msgspec.structs.replace(job.graph, entries=entries)
    network = msgspec.structs.replace(job.model.network, graph=graph)
    job = msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, network=network))
    assert {word.key for word in words_for(job, "accuracy")} == {"recipients", "metrics"}


def test_an_output_that_no_rule_knows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path)
    monkeypatch.setattr(rules, "leaving", lambda job: [*leaving(job), "gradient"])
    assert "gradient would leave the run, but no rule covers it" in refused(job)


def test_an_output_that_rules_do_not_see_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is given nothing that is not on the list that rules are asked about."""
    job = job_of(tmp_path, ("seed = 7", "seed = 7\nguard = { every = 3 }"))
    assert "guard" in {output.name for output in agreed_outputs(job)}
    monkeypatch.setattr("mpc_train.run.phases.prepare.leaving", listed)
    with pytest.raises(RuntimeError, match="no rule covers the outputs guard"):
        agreed_outputs(job)


def test_rules_hold_whatever_the_digest(tmp_path: Path) -> None:
    job = job_of(tmp_path, (OPTIMIZER, FORGETS))
    assert "least_effective_rows" in refused(job, jobs=(job.digest().hex(),))


def test_a_local_run_may_be_told_that_its_rows_are_made_up(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    assert local_rules(path) == LocalRules(8, 10)
    (tmp_path / "local.toml").write_text("[rules]\nleast_batch_rows = 1\nleast_effective_rows = 0")
    assert local_rules(path) == LocalRules(1, 0)
    assert msgspec.to_builtins(LocalRules()).keys() <= set(rules.Rules.__struct_fields__)


def test_a_refusal_says_what_to_write(tmp_path: Path) -> None:
    """The whole list, with what stands there already; for an organisation that agrees."""
    job = job_of(tmp_path, ("seed = 7", "seed = 7\nguard = { every = 3 }"))
    said = refused(job, disclosures=("overlap",), dealers=("notary",))
    assert "Only if your organisation agrees" in said
    assert 'dealers = ["notary", "registry"]; disclosures = ["overlap", "guard"]' in said
    assert "only if your organisation agrees." in refused(job, least_parties=9)


# Rules about differential privacy.


def test_default_rules_require_no_promise(tmp_path: Path) -> None:
    job = loaded(tmp_path, JOB)
    check_rules(allowing(job), job, "registry")
    promised = loaded(tmp_path, PRIVATE)
    check_rules(allowing(promised), promised, "registry")


def test_an_organisation_may_require_a_promise(tmp_path: Path) -> None:
    """A table of rules about privacy requires one, unless it says otherwise."""
    plain, promised = loaded(tmp_path, PLAIN), loaded(tmp_path, PRIVATE)
    assert "it has no [privacy]" in refused(plain, privacy=PrivacyRules())
    check_rules(allowing(plain, privacy=PrivacyRules(required=False)), plain, "registry")
    check_rules(allowing(promised, privacy=PrivacyRules()), promised, "registry")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_epsilon": Decimal("2.9")}, "its ε is 3, privacy.max_epsilon = 2.9"),
        ({"max_delta": Decimal("1e-6")}, "its δ is 0.00001, privacy.max_delta"),
        ({"units": ("patient",)}, 'privacy for one row, privacy.units = ["patient"]'),
        ({"neighbours": ("replaced",)}, "its neighbours are zeroed"),
    ],
)
def test_a_promise_has_to_be_as_large_as_required(
    tmp_path: Path, limits: dict[str, Any], said: str
) -> None:
    job = loaded(tmp_path, PRIVATE)
    assert said in refused(job, privacy=PrivacyRules(**limits))
    assert said in refused(job, privacy=PrivacyRules(required=False, **limits))
    enough: dict[str, Any] = {
        "max_epsilon": Decimal(3),
        "max_delta": Decimal("0.00001"),
        "units": ("patient", "row"),
        "neighbours": ("zeroed", "replaced"),
    }
    check_rules(allowing(job, privacy=PrivacyRules(**enough)), job, "registry")
