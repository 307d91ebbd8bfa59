"""Jobs of columns: what is refused, what is fixed before a run and what follows in it."""

from pathlib import Path

import numpy as np
import polars
import pytest

from mpc_train.admission.load import job_from_bytes, load_job, resolved
from mpc_train.admission.rules import check_rules
from mpc_train.errors import DataError, JobError, RefusedError
from mpc_train.jobs import audience
from mpc_train.jobs.audience import linkage_in_words
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import disclosed_on_the_way
from mpc_train.jobs.schedule import split, total_steps
from mpc_train.linkage.partners import least_joined, linkage_warnings, without_partner
from mpc_train.node.collect import found_by, summarise
from mpc_train.owners.table import load_table
from mpc_train.results.opening import OpenedModel
from mpc_train.results.report import describe, outcome, told_lines
from mpc_train.run.progress import ProgressView
from mpc_train.tables.source import Source
from tests.support.columns_case import JOB, three_owners, write_job, write_table
from tests.support.jobs import allowing, duplicates_toml, replaced


def loaded(folder: Path, old: str = "", new: str = "", text: str = JOB) -> Job:
    return load_job(write_job(folder, "nobody", replaced(old, new, text) if old else text))


DUPLICATES = duplicates_toml({"ann": 30, "bob": 20}, 1, 'normalise = { id = ["spaces"] }, ')
BAD = [
    ('on = ["name", "born"]', "on = []", "data.join.on: 1 to 16 columns"),
    ('on = ["name", "born"]', 'on = ["name", "name"]', "appears twice"),
    ('on = ["name", "born"]', 'on = ["claims", "born"]', "'claims' is also a feature"),
    ('on = ["name", "born"]', 'on = ["born"]', "data.join.normalise.name: is not listed under"),
    ('born = ["date"]', 'born = ["date", "case"]', "write date alone"),
    ('born = ["date"]', 'born = ["dates"]', "is not possible here; write one of"),
    ('membership = "MEMBERSHIP"\n', "", 'membership: missing; write membership = "holders" or'),
    ("least_rows = 20\n", "", "least_rows: missing; write a whole number: least_rows = …"),
    ("least_rows = 20", "least_rows = 1", "at least 2"),
    ("least_rows = 20", "least_rows = 46", "the shortest table has only 45 rows"),
    ("least_rows = 20", "least_rows = 8", "with|batch|rows"),
    ("least_rows = 20", "least_rows = 20\nleast_share = 0", "least_share: above 0 and at most 1"),
    ("least_rows = 20", "least_rows = 20\nleast_share = 1.1", "least_share: above 0 and at most"),
    ('columns = { bank = ["income", "default"]', "columns = { bank = []", "which columns bank"),
    ('["income", "default"]', '["income"]', "no owner provides 'default'"),
    ('["income", "default"]', '["income", "default", "age"]', "bank also provides"),
    ('["income", "default"]', '["income", "default", "name"]', "not a feature, the label or"),
    ('["claims", "age"] }', '["claims", "age"], shop = ["x"] }', "is not one of job.owners"),
    ('evaluators = ["bank", "insurer"]', 'evaluators = ["bank", "x"]', "insurer provides identif"),
    ('partition = "columns"', 'partition = "rows"', "data.join: is for partition"),
    ("test_fraction", "joined = 30\ntest_fraction", "is filled in during a run"),
    ("least_test_rows = 5", 'per_party = ["accuracy"]', "reveal"),
    (
        "test_fraction",
        'check_duplicates = { on = ["name"] }\ntest_fraction',
        "is only for partition",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_contradictions_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(JobError, match=message) as caught:
        loaded(tmp_path, old, new)
    assert "job.toml:" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('on = ["id"]', 'on = ["age"]', "'age' is also a feature"),
        ("most = 1", "most = -1", "at least 0"),
        ('dealer = "registry"', 'dealer = "bob"\nevaluators = ["ann", "x"]', "bob provides ident"),
        ("features =", 'columns = { ann = ["age"] }\nfeatures =', "data.columns: is for part"),
    ],
)
def test_contradictions_of_a_check_for_duplicates(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        loaded(tmp_path, old, new, DUPLICATES)


def test_the_schedule_follows_from_the_joined_rows(tmp_path: Path) -> None:
    job = loaded(tmp_path)
    assert job.rows == 45 and total_steps(job) == 3 * (34 // 8)
    known = resolved(job, 30)
    assert known.rows == 30 and total_steps(known) == 3 * (23 // 8)
    assert sum(map(len, split(known))) == 30
    assert known.digest() == job.digest()
    assert known.to_bytes() != job.to_bytes()
    assert job_from_bytes(known.to_bytes()) == known
    for rows in (19, 46):
        with pytest.raises(JobError, match="between 20 and 45"):
            resolved(job, rows)


def test_a_least_share_is_of_the_shortest_table(tmp_path: Path) -> None:
    """0.9 of 45 are 40.5: with 40 in common more than a tenth found no partner."""
    job = loaded(tmp_path, "least_rows = 20", "least_rows = 20\nleast_share = 0.9")
    assert least_joined(job) == 41
    assert "41 to 45 rows result" in describe(job)
    assert resolved(job, 41).rows == 41
    with pytest.raises(JobError, match="between 41 and 45"):
        resolved(job, 40)
    assert (
        least_joined(loaded(tmp_path, "least_rows = 20", "least_rows = 45\nleast_share = 0.9"))
        == 45
    )
    # What a job has to go with is what it asks for: five held-out rows are a quarter of 41, not 19.
    strict = "least_rows = 20\nleast_share = 0.9\n"
    text = JOB.replace("least_test_rows = 5", "least_test_rows = 10")
    assert loaded(tmp_path, "least_rows = 20", strict, text).rows == 45


@pytest.mark.parametrize(
    ("joined", "warned"), [(30, []), (29, ["bank"]), (22, ["bank", "insurer"])]
)
def test_whoever_lost_more_than_half_is_warned(
    tmp_path: Path, joined: int, warned: list[str]
) -> None:
    """Of 60 and 45 records; everywhere where the result is read, by what all know."""
    job = loaded(tmp_path)
    assert without_partner(job, joined) == {"bank": 60 - joined, "insurer": 45 - joined}
    assert [name for name in job.owners if linkage_warnings(job, joined, name)] == warned
    found = summarise(job, {key: {"steps": 1} for key in job.nodes})
    found |= found_by(job, {key: {"joined_rows": joined, "metrics": {}} for key in job.nodes})
    assert found["unmatched_records"] == {"bank": 60 - joined, "insurer": 45 - joined}
    assert len(found["warnings"]) == len(warned)
    said = outcome(found)
    assert f"{60 - joined} of bank's records found no partner" in said
    for name in job.owners:
        words = f"Warning   only {joined} of {name}'s {job.data.rows[name]} records found"
        assert (words in said) == (name in warned)
    opened = OpenedModel(resolved(job, joined), {}, {}, {})
    assert len(opened.warnings) == len(warned)
    assert not OpenedModel(job_from_bytes(job.to_bytes()), {}, {}, {}).warnings


def test_a_node_s_owner_is_told_of_its_own_records() -> None:
    told = {"unmatched_records": 7, "warnings": ["only 3 of ann's 10 records found a partner"]}
    assert told_lines(told) == [
        "Joined: 7 of this node's records found no partner",
        "warning: only 3 of ann's 10 records found a partner",
    ]
    assert not told_lines({})


def test_a_job_has_to_go_with_the_fewest_rows_too(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="least_test_rows"):
        loaded(tmp_path, "least_test_rows = 5", "least_test_rows = 6")


def test_the_contract_says_who_learns_what(tmp_path: Path) -> None:
    nobody = loaded(tmp_path)
    assert linkage_in_words(nobody) == [
        "to everybody, including the coordinator: how many records all owners have in common",
        "to bank, insurer: how many of its own records found no partner",
        "which everybody can compute: an owner's rows minus those in common",
        "to nobody: which records they are",
    ]
    holders = loaded(tmp_path, '"MEMBERSHIP"', '"holders"')
    assert "to bank, insurer: which of its own records all owners have" in linkage_in_words(holders)
    by_name = audience.learnt(holders, [])
    assert by_name["registry"] == ["how many records all owners have in common"]
    assert by_name["insurer"][1:] == [
        "how many of its own records found no partner",
        "which of its own records all owners have",
    ]
    three = loaded(tmp_path, text=three_owners())
    everywhere = "to bank, neutral, insurer, shop: how many records each choice of owners has"
    assert any(line.startswith(everywhere) for line in linkage_in_words(three))
    three = loaded(tmp_path, '"MEMBERSHIP"', '"holders"', three_owners())
    assert any(
        "which of its own records each other owner has" in line for line in linkage_in_words(three)
    )
    by_name = audience.learnt(three, [])
    assert by_name["neutral"] == ["how many records all owners have in common"]
    assert by_name["shop"][2:] == [
        "which of its own records all owners have",
        "which of its own records each other owner has, and how many records others have in common",
    ]
    rows = loaded(tmp_path, text=DUPLICATES)
    assert linkage_in_words(rows)[0] == "to ann, bob: how many records are in more than one table"
    for job in (nobody, holders, three, rows):
        for line in linkage_in_words(job):
            assert line in describe(job)
    assert "joined by name (case, accents, spaces ignored) and born (a date)" in describe(nobody)
    assert "bank: income, default; insurer: claims, age" in describe(nobody)
    assert "20 to 45 rows" in describe(nobody)


@pytest.mark.parametrize(
    ("membership", "allowed", "missing"),
    [
        ("nobody", (), "overlap"),
        ("nobody", ("overlap",), ""),
        ("holders", ("overlap",), "membership"),
        ("holders", ("overlap", "membership"), ""),
    ],
)
def test_a_node_s_rules_allow_what_linkage_tells(
    tmp_path: Path, membership: str, allowed: tuple[str, ...], missing: str
) -> None:
    job = loaded(tmp_path, '"MEMBERSHIP"', f'"{membership}"')
    assert set(disclosed_on_the_way(job)) >= {"overlap"}
    rules = allowing(job, disclosures=allowed, least_test_rows=5, least_effective_rows=8)
    if not missing:
        check_rules(rules, job, "bank")
        return
    with pytest.raises(RefusedError, match=f"{missing} would be disclosed"):
        check_rules(rules, job, "bank")


def test_an_owner_reads_its_own_columns(tmp_path: Path) -> None:
    job = loaded(tmp_path)
    bank = load_table(
        Source(str(write_table(tmp_path, "bank", 60)), date_format="%d.%m.%Y"), job, "bank"
    )
    insurer = load_table(Source(str(write_table(tmp_path, "insurer", 45))), job, "insurer")
    assert bank.features.shape == (60, 1) and bank.labels.shape == (60,)
    assert insurer.features.shape == (45, 2) and insurer.labels.shape == (0,)
    assert bank.tokens is not None and insurer.tokens is not None
    assert bank.tokens.shape == (60, 32) and insurer.tokens.shape == (45, 32)
    known = {token.tobytes() for token in bank.tokens}
    assert sum(token.tobytes() in known for token in insurer.tokens) == 35
    assert "tokens" not in repr(bank)


def test_a_date_of_birth_is_one_key_as_text_and_as_a_date(tmp_path: Path) -> None:
    """Of two digits under a declared pivot, and in a format that knows dates, whatever is declared
    for text."""
    job = loaded(tmp_path)
    path = write_table(tmp_path, "insurer", 45)
    iso = load_table(Source(str(path)), job, "insurer").tokens
    frame = polars.read_csv(path, schema_overrides={"born": polars.String})
    days = frame["born"].str.to_date()
    frame.with_columns(born=days.dt.strftime("%d.%m.%y")).write_csv(tmp_path / "short.csv")
    frame.with_columns(born=days.cast(polars.Datetime)).write_parquet(tmp_path / "typed.parquet")
    for name in ("short.csv", "typed.parquet"):
        source = Source(str(tmp_path / name), date_format="%d.%m.%y", date_pivot=1930)
        np.testing.assert_array_equal(load_table(source, job, "insurer").tokens, iso)


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (3, lambda cells: ["ZOE  muller 31", "1991-08-04", *cells[2:]], "identifies the same"),
        (4, lambda cells: [cells[0], "05.12.1980", *cells[2:]], "column 'born': not a date"),
        (5, lambda cells: ["  ", *cells[1:]], "column 'name': the cell is empty"),
    ],
)
def test_bad_identifiers_are_named(tmp_path: Path, line: int, change, message: str) -> None:  # type: ignore[no-untyped-def]
    """By file, line and column, and never by what stands there."""
    job = loaded(tmp_path)
    path = write_table(tmp_path, "insurer", 45)
    lines = path.read_text().splitlines()
    cells = change(lines[line - 1].split(","))
    lines[line - 1] = ",".join(cells)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message) as caught:
        load_table(Source(str(path)), job, "insurer")
    assert str(path) in str(caught.value) and "line " in str(caught.value)
    for cell in cells[:2]:
        assert not cell.strip() or cell not in str(caught.value)


def test_all_bad_identifiers_are_named_at_once(tmp_path: Path) -> None:
    job = loaded(tmp_path)
    path = write_table(tmp_path, "insurer", 45)
    lines = path.read_text().splitlines()
    for line in (4, 9, 30):
        name, _, *rest = lines[line - 1].split(",")
        lines[line - 1] = ",".join([name, "05.12.1980", *rest])
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 4: column 'born': not a date.*\(and lines 9, 30\)"):
        load_table(Source(str(path)), job, "insurer")


def test_progress_says_what_takes_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView()
    view.event("started", {})
    for node in ("bank", "insurer"):
        view.event("progress", {"node": node, "fields": {"phase": "linking", "records": 200000}})
    view.event("progress", {"node": "bank", "fields": {"step": 4, "steps": 4}})
    said = capsys.readouterr().err
    assert said.count("comparing 200,000 records") == 1
    assert "training 4/4" in said
