"""`[serve]` of a job: what is accepted, what people read before they sign, and what rules allow."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mpc_train.admission.cautions import cautions
from mpc_train.admission.load import job_from_bytes
from mpc_train.admission.rules import Rules, check_rules, check_serving, rule_faults
from mpc_train.errors import JobError, RefusedError
from mpc_train.jobs.audience import TRAINING_COUNTS, audience
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import clause, leaving
from mpc_train.jobs.serve import Drift, Serve
from mpc_train.results.report import describe
from mpc_train.run.local import LocalNode, node_text
from mpc_train.tables.source import Source
from tests.support.jobs import JOB, allowing, changed, loaded

SERVE = """[serve]
clients = ["clinic", "lab"]
rows_a_day = 500
answer = "probability"
decimals = 2
validators = ["hospital-d"]
"""
SHARED = changed(
    ('recipients = ["ann", "office"]\n', ""),
    ("[reveal]", f'{SERVE}\n[reveal]\nmodel = "shares"'),
)
DRIFT = 'drift = { every_rows = 1000, epsilon = "0.5", to = ["ann"] }'
WATCHED = changed(("decimals = 2", f"decimals = 2\n{DRIFT}"), text=SHARED)
SEVERAL = changed(
    ('kind = "logistic"', 'kind = "softmax"\nclasses = 3'),
    ('["accuracy", "auc"]', '["accuracy"]'),
    text=SHARED,
)


def test_it_is_part_of_what_everybody_signs(tmp_path: Path) -> None:
    job = loaded(tmp_path, SHARED)
    assert job.serve == Serve(("clinic", "lab"), 500, "probability", 2, ("hospital-d",))
    assert job_from_bytes(job.to_bytes()) == job
    other = loaded(tmp_path, changed(("rows_a_day = 500", "rows_a_day = 501"), text=SHARED))
    assert other.digest() != job.digest()
    # Clients learn nothing of the run, and need no card in it.
    assert not {"clinic", "lab", "hospital-d"} & {*job.names}


def test_drift_is_part_of_it_and_nothing_without(tmp_path: Path) -> None:
    watched, job = loaded(tmp_path, WATCHED), loaded(tmp_path, SHARED)
    assert watched.drift == Drift(1000, Decimal("0.5"), ("ann",)) and job.drift is None
    assert job_from_bytes(watched.to_bytes()) == watched
    assert watched.digest() != job.digest()
    # Jobs that owners have agreed to before there was such a key keep their digests.
    assert b"drift" not in job.to_bytes()


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("every_rows = 1000", "every_rows = 99", "serve.drift.every_rows", "between 100 and"),
        ('epsilon = "0.5"', 'epsilon = "0.001"', "serve.drift.epsilon", "between 0.01 and 100"),
        ('epsilon = "0.5"', 'epsilon = "NaN"', "serve.drift.epsilon", "finite"),
        ('to = ["ann"]', "to = []", "serve.drift.to", "one or more of the evaluators"),
        ('to = ["ann"]', 'to = ["clinic"]', "serve.drift.to", "not clinic"),
        ('to = ["ann"]', 'to = ["ann", "ann"]', "serve.drift.to", "twice"),
        (', to = ["ann"]', "", "serve.drift", "to"),
        ('clients = ["clinic", "lab"]', "", "serve.drift", "nobody may ask the model"),
    ],
)
def test_a_fault_of_drift_is_named(tmp_path: Path, old: str, new: str, key: str, says: str) -> None:
    with pytest.raises(JobError) as caught:
        loaded(tmp_path, changed((old, new), text=WATCHED))
    assert key in str(caught.value) and says in str(caught.value)


def test_drift_of_nothing_is_refused(tmp_path: Path) -> None:
    linear = changed(
        ('"probability"\ndecimals = 2', '"number"'),
        ('kind = "logistic"', 'kind = "linear"'),
        ('["accuracy", "auc"]', '["mse"]'),
        text=WATCHED,
    )
    with pytest.raises(JobError, match="nothing is counted"):
        loaded(tmp_path, linear)


def test_people_read_what_is_counted(tmp_path: Path) -> None:
    said = describe(loaded(tmp_path, WATCHED))
    assert "how many of each 1000 rows that are asked fall into which" in said
    assert "bins, with noise of ε = 0.5 for a row; ann keeps a record" in said
    assert "fall into which" not in describe(loaded(tmp_path, SHARED))


def test_counts_that_say_too_much_or_nothing_are_warned_of(tmp_path: Path) -> None:
    much = changed(('epsilon = "0.5"', 'epsilon = "4"'), text=WATCHED)
    assert any("noise hides little of one row" in line for line in cautions(loaded(tmp_path, much)))
    few = changed(("every_rows = 1000", "every_rows = 150"), text=WATCHED)
    assert any("its index will say little" in line for line in cautions(loaded(tmp_path, few)))
    assert any("as a baseline of drift they say little" in line for line in warned(tmp_path, few))
    first = changed(('epsilon = "0.5"', 'epsilon = "0.5", baseline = "first-window"'), text=WATCHED)
    assert not any("serve.drift" in line for line in warned(tmp_path, first))


def warned(folder: Path, text: str) -> list[str]:
    return cautions(loaded(folder, text))


def test_training_rows_are_counted_only_where_the_rules_list_it(tmp_path: Path) -> None:
    job = loaded(tmp_path, WATCHED)
    assert job.counts_training and TRAINING_COUNTS in leaving(job)
    assert audience(job, TRAINING_COUNTS) == job.evaluators
    assert clause(job, TRAINING_COUNTS) == "serve.drift"
    without = allowing(job, disclosures=(), max_drift_epsilon=0.5)
    assert 'write disclosures = ["training_counts"]' in refused(without, job)
    assert "how many training rows fall into which bin" in describe(job)
    text = changed(('epsilon = "0.5"', 'epsilon = "0.5", baseline = "first-window"'), text=WATCHED)
    first = loaded(tmp_path, text)
    assert not first.counts_training and TRAINING_COUNTS not in leaving(first)
    assert "nothing of training rows is counted" in describe(first)
    assert b"baseline" not in job.to_bytes() and b"first-window" in first.to_bytes()


def refused(rules: Rules, job: Job) -> str:
    with pytest.raises(RefusedError) as caught:
        check_rules(rules, job, "ann")
    return str(caught.value)


def test_few_training_rows_are_not_counted(tmp_path: Path) -> None:
    text = changed(("[reveal]", "[reveal]\nleast_group = 76"), text=WATCHED)
    with pytest.raises(JobError, match=r"75 rows train, fewer than reveal\.least_group = 76"):
        loaded(tmp_path, text)


def test_drift_needs_a_rule(tmp_path: Path) -> None:
    job = loaded(tmp_path, WATCHED)
    check_rules(listing(job, max_drift_epsilon=0.5), job, "ann")
    for changes, says in (
        ({}, "with ε = 0.5 to watch drift, max_drift_epsilon = 0"),
        ({"max_drift_epsilon": 0.4}, "max_drift_epsilon = 0.4"),
        (
            {"max_drift_epsilon": 1.0, "least_group": 5000},
            f"windows of {job.reveal.least_group} real rows, least_group = 5000",
        ),
    ):
        assert says in broken(job, **changes)
        with pytest.raises(RefusedError, match="is not served by this node's rules"):
            check_serving(listing(job, **changes), job, "ann")
    for faulty in (-1.0, float("nan"), float("inf")):
        found = rule_faults(allowing(job, max_drift_epsilon=faulty))
        assert ("rules.max_drift_epsilon", "at least 0") in found


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ('model = "shares"', "", "job.recipients", "at least one name"),
        ('["clinic", "lab"]', '["Clinic"]', "serve.clients", "not a name of a card"),
        ('["clinic", "lab"]', '["lab", "lab"]', "serve.clients", "twice"),
        ('["hospital-d"]', '["../d"]', "serve.validators", "not a name of a card"),
        ('["hospital-d"]', '["d", "d"]', "serve.validators", "twice"),
        ("rows_a_day = 500", "rows_a_day = 0", "serve.rows_a_day", "between 1 and"),
        ("rows_a_day = 500", "rows_a_day = 1e3", "serve.rows_a_day", "rows_a_day"),
        ('"probability"', '"odds"', "serve.answer", "write one of"),
        ('"probability"', '"class"', "serve.decimals", "a class is a whole number"),
        ("decimals = 2", "decimals = 5", "serve.decimals", "of a probability: between 0 and 4"),
        ("decimals = 2", "decimals = -1", "serve.decimals", "between 0 and 4"),
        ("decimals = 2", "digits = 2", "serve.digits", "unknown key"),
    ],
)
def test_a_fault_is_named_with_its_remedy(
    tmp_path: Path, old: str, new: str, key: str, says: str
) -> None:
    with pytest.raises(JobError) as caught:
        loaded(tmp_path, changed((old, new), text=SHARED))
    assert key in str(caught.value) and says in str(caught.value)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    wrong = changed(
        ('["clinic", "lab"]', '["Clinic"]'),
        ("rows_a_day = 500", "rows_a_day = 0"),
        ("decimals = 2", "decimals = 9"),
        text=SHARED,
    )
    with pytest.raises(JobError) as caught:
        loaded(tmp_path, wrong)
    for key in ("serve.clients", "serve.rows_a_day", "serve.decimals"):
        assert key in str(caught.value)


def test_an_opened_model_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="only a model that stays in shares"):
        loaded(tmp_path, changed(("[reveal]", f"{SERVE}\n[reveal]")))


def test_nobody_may_ask(tmp_path: Path) -> None:
    empty = changed(("[reveal]", "[serve]\n[reveal]"), text=SHARED.replace(SERVE, ""))
    with pytest.raises(JobError, match="name who may ask the model"):
        loaded(tmp_path, empty)


def test_a_number_has_no_class(tmp_path: Path) -> None:
    numbers = changed(
        ('kind = "logistic"', 'kind = "linear"'),
        ('["accuracy", "auc"]', '["mse"]'),
        text=SHARED,
    )
    for answer in ("class", "probability"):
        with pytest.raises(JobError, match='a linear model has no classes; write answer = "number'):
            loaded(tmp_path, numbers.replace('"probability"', f'"{answer}"'))
    job = loaded(tmp_path, numbers.replace('"probability"', '"number"'))
    assert job.serve is not None and job.serve.decimals == 2


def test_no_more_decimals_than_numbers_have(tmp_path: Path) -> None:
    """Rounding more finely than the fixed point might also leave the ring."""
    coarse = changed(
        ('answer = "probability"', 'answer = "number"'),
        ("decimals = 2", "decimals = 4"),
        ("[serve]", "[fixed_point]\nfraction_bits = 12\n\n[serve]"),
        text=SHARED,
    )
    with pytest.raises(JobError, match=r"serve.decimals.*at most 3: numbers have 12 binary places"):
        loaded(tmp_path, coarse)
    loaded(tmp_path, coarse.replace("decimals = 4", "decimals = 3"))


@pytest.mark.parametrize("name", ["ann", "registry"])
def test_an_organisation_of_the_run_may_ask_as_well(tmp_path: Path, name: str) -> None:
    job = loaded(tmp_path, changed(('"clinic"', f'"{name}"'), text=SHARED))
    assert job.serve is not None and name in job.serve.clients


def test_people_read_who_may_ask_what(tmp_path: Path) -> None:
    said = describe(loaded(tmp_path, SHARED))
    assert "served     to clinic, lab: at most 500 rows a day (UTC) each," in said
    assert "of each row the probability of class 1, rounded over shares to 2 decimals" in said
    assert "to hospital-d: metrics on rows of their own, which each such run lists" in said
    label = changed(
        ('answer = "probability"\ndecimals = 2', 'answer = "class"'),
        ('validators = ["hospital-d"]\n', ""),
        text=SHARED,
    )
    said = describe(loaded(tmp_path, label))
    assert "of each row which class is likeliest, and nothing else" in said
    assert "metrics on rows of their own" not in said
    raw = changed(('"probability"\ndecimals = 2', '"number"'), text=SEVERAL)
    assert "of each row the model's output for each class, unrounded" in describe(
        loaded(tmp_path, raw)
    )
    kept = describe(loaded(tmp_path, SHARED.replace(SERVE, "")))
    assert "served     to nobody: evaluators compute nothing with it" in kept
    assert "served" not in describe(loaded(tmp_path, JOB))


def test_unrounded_answers_are_warned_of(tmp_path: Path) -> None:
    warning = "each client can compute the whole model from unrounded answers to 3 rows"
    raw = changed(("decimals = 2\n", ""), text=SHARED)
    assert any(warning in line for line in cautions(loaded(tmp_path, raw)))
    number = changed(('"probability"', '"number"'), text=raw)
    assert any(warning in line for line in cautions(loaded(tmp_path, number)))
    deep = changed(
        ('kind = "logistic"', 'kind = "mlp"\nhidden = [4]\nclasses = 2'),
        ('["accuracy", "auc"]', '["accuracy"]'),
        text=raw,
    )
    assert any("build a model like this one" in line for line in cautions(loaded(tmp_path, deep)))
    for sound in (SHARED, changed(('"probability"', '"class"'), text=raw)):
        assert not any("unrounded" in line for line in cautions(loaded(tmp_path, sound)))


# What a node's rules allow


def broken(job: Job, **changes: Any) -> str:
    with pytest.raises(RefusedError, match="Nothing was shared") as caught:
        check_rules(listing(job, **changes), job, "ann")
    return str(caught.value)


def listing(job: Job, **changes: Any) -> Rules:
    """Rules that list all that the job needs, besides `changes`."""
    assert job.serve is not None
    named: dict[str, Any] = {
        "clients": job.serve.clients,
        "validators": job.serve.validators,
        "answers": (job.serve.answer,),
        "least_group": 5,
    }
    return allowing(job, **{**named, **changes})


def test_nothing_is_served_unless_the_rules_list_it(tmp_path: Path) -> None:
    job = loaded(tmp_path, SHARED)
    with pytest.raises(RefusedError) as caught:
        check_rules(allowing(job), job, "ann")
    said = str(caught.value)
    assert "clinic, lab could ask the model but is not listed under clients" in said
    assert "hospital-d could measure the model but is not listed under validators" in said
    assert "probability would leave to clients but is not listed under answers" in said
    assert 'write validators = ["hospital-d"]; clients = ["clinic", "lab"]' in said
    check_rules(listing(job), job, "ann")
    # The default allows the job's default and no more.
    more = loaded(tmp_path, changed(("rows_a_day = 500", "rows_a_day = 1001"), text=SHARED))
    assert "each client could ask 1001 rows a day, max_rows_a_day = 1000" in broken(more)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clients": ("clinic",)}, "lab could ask the model"),
        ({"validators": ()}, "hospital-d could measure the model"),
        ({"answers": ("class", "number")}, "probability would leave to clients"),
        ({"max_rows_a_day": 499}, "500 rows a day, max_rows_a_day = 499"),
        ({"max_decimals": 1}, "answers with 2 decimals, max_decimals = 1"),
    ],
)
def test_each_rule_alone_refuses(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    job = loaded(tmp_path, SHARED)
    assert says in broken(job, **changes)
    rules = listing(job, **changes)
    with pytest.raises(RefusedError, match="is not served by this node's rules") as caught:
        check_serving(rules, job, "ann")
    assert says in str(caught.value)


def test_unrounded_is_more_than_any_number_of_decimals(tmp_path: Path) -> None:
    job = loaded(tmp_path, changed(("decimals = 2\n", ""), text=SHARED))
    assert "answers unrounded, max_decimals = 6" in broken(job, max_decimals=6)
    check_rules(listing(job), job, "ann")
    label = changed(("decimals = 2\n", ""), ('"probability"', '"class"'), text=SHARED)
    job = loaded(tmp_path, label)
    check_rules(listing(job, max_decimals=0), job, "ann")
    check_serving(listing(job, max_decimals=0), job, "ann")


def test_what_no_client_gets_needs_no_word(tmp_path: Path) -> None:
    job = loaded(tmp_path, changed(('clients = ["clinic", "lab"]\n', ""), text=SHARED))
    check_rules(listing(job, answers=(), max_rows_a_day=1), job, "ann")
    check_serving(allowing(job, validators=("hospital-d",)), job, "ann")
    plain = loaded(tmp_path)
    check_serving(allowing(plain), plain, "ann")


def test_the_nodes_of_a_local_run_allow_it(tmp_path: Path) -> None:
    job = loaded(tmp_path, WATCHED)
    node = LocalNode("ann", "party", tmp_path)
    sources = {owner: Source(f"{owner}.csv") for owner in job.owners}
    text = node_text(node, tmp_path / "roster", "office", "tcp://127.0.0.1:1", job, sources)
    said = tomllib.loads(text)["rules"]
    rules = msgspec.convert({**said, "least_group": 5}, Rules)
    check_rules(rules, job, "ann")


def test_rules_of_their_own_are_checked(tmp_path: Path) -> None:
    faulty = allowing(
        loaded(tmp_path), clients=("Clinic",), validators=("d!",), max_rows_a_day=0, max_decimals=-1
    )
    assert {key for key, _ in rule_faults(faulty)} == {
        "rules.clients",
        "rules.validators",
        "rules.max_rows_a_day",
        "rules.max_decimals",
    }
