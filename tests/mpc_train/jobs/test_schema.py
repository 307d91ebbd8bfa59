"""Jobs with a schema: the file's content is carried, and what contradicts it is named."""

from pathlib import Path

import msgspec
import pytest

from mpc_train.admission.load import job_from_bytes
from mpc_train.errors import DataError, JobError
from mpc_train.jobs.job import Job
from mpc_train.owners.table import load_table
from mpc_train.tables.schema import load_schema
from mpc_train.tables.source import Source
from tests.support.commands import last_object, mpc_train
from tests.support.jobs import JOB, column, loaded, schema_toml, with_data

SCHEMA = schema_toml(
    column("patient", "identifier"),
    column("age", range=[0, 120]),
    column("dose"),
    column("ill", "category", levels=["no", "yes"]),
    column("region", "category", levels=["north", "south"]),
)
FEATURES = """schema = "schema.toml"
features = [{ name = "age", center = 50, scale = 10 }, { name = "dose", scale = 2 }]
"""


def job(folder: Path, data: str = FEATURES, schema: str = SCHEMA, more: str = "") -> Job:
    return loaded(folder, with_data(data) + more, schema)


def test_a_job_carries_the_schema(tmp_path: Path) -> None:
    found = job(tmp_path)
    assert found.data.schema == ""
    assert found.schema == load_schema(tmp_path / "schema.toml")
    assert [feature.name for feature in found.features] == ["age", "dose"]
    assert found.label.classes == ("no", "yes")
    again = job_from_bytes(found.to_bytes())
    assert again == found
    assert again.schema.digest() == found.schema.digest()
    spelled = job(tmp_path, schema=SCHEMA.replace("[0, 120]", "[0.0, 1.2e2]"))
    assert spelled.digest() == found.digest()
    assert job(tmp_path, schema=SCHEMA.replace("120", "121")).digest() != found.digest()


def test_without_a_list_all_columns_but_label_and_identifiers_are_features(tmp_path: Path) -> None:
    found = job(tmp_path, 'schema = "schema.toml"\n')
    assert [feature.name for feature in found.features] == ["age", "dose", "region"]


def test_the_short_form_has_a_schema_too(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert found.data.table is None
    assert [column.kind for column in found.schema.columns] == ["number", "number", "category"]
    assert found.schema["age"].bounds == (0, 120)
    assert found.schema["ill"].levels == ("0", "1")


WRONG = [
    (FEATURES.replace("schema.toml", "none.toml"), SCHEMA, "none.toml", "cannot be read"),
    (FEATURES.replace("schema.toml", "../x.toml"), SCHEMA, "data.schema", "/../x.toml: cannot be"),
    (
        FEATURES,
        SCHEMA.replace('"number"', '"numbers"', 1),
        "columns[1].kind",
        "is not possible here",
    ),
    (FEATURES, SCHEMA.replace('"age"', '"years"'), "data.features[0]", "'age' is not a column"),
    (FEATURES.replace("age", "patient"), SCHEMA, "data.features[0]", "is an identifier"),
    (FEATURES.replace("scale = 2", "range = [0, 1]"), SCHEMA, "data.features[1].range", "schema"),
    (FEATURES, SCHEMA.replace('"ill"', '"sick"'), "data.label", "not a column of the schema"),
    (FEATURES, SCHEMA.replace('"yes"]', '"yes"]\nother = true'), "data.label", 'remove "other"'),
    (FEATURES + "table = { columns = [] }\n", SCHEMA, "data.table", "is filled in"),
    ("", SCHEMA, "data.features", "at least one feature"),
]


@pytest.mark.parametrize(("data", "schema", "key", "says"), WRONG)
def test_a_contradiction_names_its_key(
    tmp_path: Path, data: str, schema: str, key: str, says: str
) -> None:
    with pytest.raises(JobError) as caught:
        job(tmp_path, data, schema)
    assert key in str(caught.value)
    assert says in str(caught.value)


def test_a_label_of_another_kind_is_refused(tmp_path: Path) -> None:
    number = SCHEMA.replace('kind = "category"\nlevels = ["no", "yes"]', 'kind = "number"')
    with pytest.raises(JobError, match="a logistic model predicts a column of kind boolean or"):
        job(tmp_path, schema=number)


def test_a_schema_from_the_wire_is_checked(tmp_path: Path) -> None:
    body = msgspec.json.decode(job(tmp_path).to_bytes())
    for change in (
        {"name": ""},
        {"name": "age"},
        {"levels": ["a"]},
        {"kind": "blob"},
        {"range": ["nan", "1"]},
        {"surprise": 1},
    ):
        altered = msgspec.json.decode(msgspec.json.encode(body))
        altered["data"]["table"]["columns"][2] |= change
        with pytest.raises(JobError):
            job_from_bytes(msgspec.json.encode(altered, order="deterministic"))
    body["data"]["schema"] = "schema.toml"
    with pytest.raises(JobError, match=r"data\.schema"):
        job_from_bytes(msgspec.json.encode(body, order="deterministic"))


def test_job_check_shows_the_digest_of_the_schema(tmp_path: Path) -> None:
    digest = job(tmp_path).schema.digest().hex()
    path = tmp_path / "job.toml"
    shown = mpc_train("job", "check", path).stdout.replace("\n", " ")
    assert f"a schema of 5 columns, digest {digest}" in shown
    shown = mpc_train("job", "check", path, "--format", "json").stdout
    assert last_object(shown)["schema"] == digest
    checked = mpc_train("schema", "check", tmp_path / "schema.toml")
    assert digest in checked.stdout


def test_a_table_is_checked_against_the_jobs_schema(tmp_path: Path) -> None:
    found = job(tmp_path)
    path = tmp_path / "bob.csv"
    rows = [f"p{row},{20 + row},{row / 10},{('no', 'yes')[row % 2]},north" for row in range(30)]

    def written(rows: list[str]) -> Source:
        path.write_text("\n".join(["patient,age,dose,ill,region", *rows]) + "\n")
        return Source(str(path))

    table = load_table(written(rows), found, "bob")
    assert table.features[1].tolist() == [-2.9, 0.05]
    assert table.labels[:3].tolist() == [0, 1, 0]
    for row, line, says in (
        (4, "p4,121,0,no,north", "line 6: column 'age': outside the declared range"),
        (4, "p4,30,0,maybe,north", "line 6: column 'ill': not one of the declared levels 'no', "),
        (4, "p4,30,99,no,north", "line 6: column 'dose': after centring and scaling beyond"),
        (4, "p4,,0,no,north", "line 6: column 'age': the cell is empty"),
    ):
        with pytest.raises(DataError) as caught:
            load_table(written([*rows[:row], line, *rows[row + 1 :]]), found, "bob")
        assert says in str(caught.value)


def test_names_are_the_same_however_their_letters_are_encoded(tmp_path: Path) -> None:
    steps = "\n[prepare.columns.{name}]\npowers = 1\n"
    nfc, nfd = "\u00e2ge", "a\u0302ge"
    there, here = (SCHEMA.replace('"age"', f'"{name}"') for name in (nfc, nfd))
    data = FEATURES.replace('"age"', '"{name}"')
    found = job(tmp_path, data.replace("{name}", nfc), there, steps.replace("{name}", f'"{nfc}"'))
    for one, schema, other in ((nfd, here, nfd), (nfd, there, nfc), (nfc, here, nfd)):
        spelt = job(
            tmp_path, data.replace("{name}", one), schema, steps.replace("{name}", f'"{other}"')
        )
        assert spelt.digest() == found.digest()
        assert spelt.features[0].name == nfc
    body = found.to_bytes().decode().replace(nfc, nfd).encode()
    with pytest.raises(JobError, match="not in canonical form"):
        job_from_bytes(body)
    (tmp_path / "bob.csv").write_text(
        f"patient,{nfd},dose,ill,region\n"
        + "".join(f"p{row},{20 + row},{row},{('no', 'yes')[row % 2]},north\n" for row in range(30))
    )
    assert load_table(Source(str(tmp_path / "bob.csv")), found, "bob").features.shape == (30, 2)


def test_two_names_that_become_one_are_an_error(tmp_path: Path) -> None:
    twice = SCHEMA.replace('"age"', '"\u00e9"').replace('"dose"', '"e\u0301"')
    with pytest.raises(JobError, match=r"columns\[2\].name: '\u00e9' appears twice"):
        job(tmp_path, schema=twice)
    levels = SCHEMA.replace('"no", "yes"', '"1", "1.0"')
    with pytest.raises(JobError, match=r"columns\[3\].levels: '1' and '1.0' are the same number"):
        job(tmp_path, schema=levels)
    steps = '\n[prepare.columns]\n"\u00e9" = { powers = 1 }\n"e\u0301" = { powers = 2 }\n'
    with pytest.raises(JobError, match="two names differ only"):
        job(tmp_path, more=steps)
    classes = 'label = { name = "ill", classes = ["1", "1e0"] }'
    with pytest.raises(JobError, match=r"data.label.classes: '1' appears twice"):
        loaded(tmp_path, JOB.replace('label = "ill"', classes))
