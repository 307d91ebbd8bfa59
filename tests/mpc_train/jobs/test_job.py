"""Job files: what is accepted, what is refused and how clearly."""

from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.errors import JobError
from tests.support.jobs import JOB, replaced, write_job


def test_a_job_is_read_with_its_defaults(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    assert job.evaluators == ("ann", "bob", "cleo")
    assert job.nodes == ("ann", "bob", "cleo", "registry")
    assert job.names == ("ann", "bob", "cleo", "office", "registry")
    assert [feature.name for feature in job.features] == ["age", "dose"]
    assert job.features[0].scale == Decimal(10)
    assert job.fraction_bits == 20
    assert (job.rows, job.first_row("cleo"), job.outputs, job.classes) == (100, 70, 1, 2)
    assert job.shapes == {"weight": (1, 2), "bias": (1,)}


def test_a_dealer_who_owns_data_does_not_evaluate(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path, replaced('dealer = "registry"', 'dealer = "cleo"')))
    assert job.evaluators == ("ann", "bob")
    assert job.owners == ("ann", "bob", "cleo")


def test_an_mlp_has_the_names_of_a_torch_sequential(tmp_path: Path) -> None:
    text = replaced('kind = "logistic"', 'kind = "mlp"\nhidden = [5, 4]\nclasses = 2')
    text = text.replace('["accuracy", "auc"]', '["accuracy"]')
    job = load_job(write_job(tmp_path, text))
    assert list(job.shapes) == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    assert job.shapes["2.weight"] == (4, 5)
    assert job.shapes["4.bias"] == (2,)


def test_the_digest_depends_on_meaning_not_on_spelling(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    for old, new in [
        ("learning_rate = 0.5", "learning_rate = 5.0e-1"),
        ("scale = 10.0", "scale = 10"),
        (
            '[model]\nkind = "logistic"\n',
            '[fixed_point]\nfraction_bits = 20\n[model]\nkind = "logistic"\n',
        ),
        ('dealer = "registry"', 'dealer = "registry"\nevaluators = ["ann", "bob", "cleo"]'),
    ]:
        assert load_job(write_job(tmp_path, replaced(old, new))).digest() == job.digest()
    for old, new in [("0.5,", "0.25,"), ("seed = 7", "seed = 8"), ("ann = 40", "ann = 41")]:
        assert load_job(write_job(tmp_path, replaced(old, new))).digest() != job.digest()


def test_the_digest_is_pinned(tmp_path: Path) -> None:
    """All nodes of all versions must agree on it."""
    digest = load_job(write_job(tmp_path)).digest().hex()
    assert digest == "6667e557ec312dcc877b0b84d65152cff33e72015d13573d6bc971f5bcfb1f5f"


def test_a_job_survives_the_wire(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    again = job_from_bytes(job.to_bytes())
    assert again == job
    assert again.to_bytes() == job.to_bytes()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"job":{}}',
        "spaces",
        "unknown",
        "nan",
        "huge",
        "evaluating dealer",
    ],
)
def test_a_bad_body_from_the_wire_is_one_error(tmp_path: Path, body: bytes | str) -> None:
    good = load_job(write_job(tmp_path)).to_bytes()
    made = {
        "spaces": good.replace(b'"data":', b'"data": '),
        "unknown": good.replace(b'"version":1', b'"version":1,"x":2'),
        "nan": good.replace(b'"learning_rate":"0.5"', b'"learning_rate":"nan"'),
        "huge": good.replace(b'"learning_rate":"0.5"', b'"learning_rate":"1e999999999"'),
        "evaluating dealer": good.replace(b'"dealer":"registry"', b'"dealer":"ann"'),
    }
    wire = made[body] if isinstance(body, str) else body
    assert wire != good
    with pytest.raises(JobError):
        job_from_bytes(wire)


def test_wire_bytes_of_another_version_are_refused(tmp_path: Path) -> None:
    tree = msgspec.json.decode(load_job(write_job(tmp_path)).to_bytes())
    tree["version"] = 2
    with pytest.raises(JobError, match="version 1"):
        job_from_bytes(msgspec.json.encode(tree, order="deterministic"))


WRONG = [
    ("seed = 7", "sed = 7", "train.sed", "unknown key"),
    ('name = "sgd"', 'nam = "sgd"', "train.optimizer.nam", "unknown key"),
    ("center = 50", "middle = 50", "data.features[0].middle", "unknown key"),
    ("epochs = 4", 'epochs = "4"', "train.epochs", "got `str`; write it without quotation marks"),
    (
        'metrics = ["accuracy", "auc"]',
        'metrics = "auc"',
        "reveal.metrics",
        'write a list, like ["…"]',
    ),
    ("epochs = 4\n", "", "train", "epochs"),
    ("epochs = 4", "epochs = 0", "train.epochs", "at least 1"),
    ('name = "study"', 'name = "My Study"', "job.name", "use a-z"),
    ('"bob"', '"Bob"', "job.owners", "node name"),
    ('"bob"', '"ann"', "job.owners", "twice"),
    ('["ann", "bob", "cleo"]', '["ann"]', "job.evaluators", "two evaluators"),
    (
        'dealer = "registry"',
        'dealer = "ann"\nevaluators = ["ann", "bob"]',
        "job.dealer",
        "cannot deal and evaluate",
    ),
    ('["ann", "office"]', "[]", "job.recipients", "at least one"),
    ("[reveal]", '[reveal]\nmodel = "shares"', "job.recipients", "nobody opens the model"),
    ("[reveal]", '[reveal]\nmodel = "share"', "reveal.model", "share"),
    ('label = "ill"', 'label = "age"', "data.label", "also a feature"),
    ('"dose"', '"age"', "data.features", "twice"),
    ("scale = 2", "scale = 0", "data.features[1].scale", "above 0"),
    ("scale = 2", "scale = -1.5", "data.features[1].scale", "above 0"),
    ("[0, 120]", "[120, 0]", "data.features[0].range", "least, largest"),
    ("split_seed = 3", "standardize = false", "data.features[0].scale", "standardize"),
    (
        'label = "ill"',
        'label = { name = "ill", classes = ["a", "b", "c"] }',
        "data.label.classes",
        "2 classes",
    ),
    ('label = "ill"', 'label = { name = "ill", scale = 3 }', "data.label.scale", "no center"),
    ("bob = 30, ", "", "data.rows", "bob"),
    ("bob = 30, ", "bob = 30, dan = 5, ", "data.rows.dan", "not one of"),
    ("bob = 30, ", "bob = 0, ", "data.rows.bob", "between 1"),
    ("test_fraction = 0.25", "test_fraction = 1.0", "data.test_fraction", "below 1"),
    ("test_fraction = 0.25", "test_fraction = 0.05", "reveal.metrics", "test rows"),
    ("[reveal]", "[reveal]\nthreshold = 3", "reveal.threshold", "between 2 and 2"),
    ("[reveal]", "[reveal]\nthreshold = 0", "reveal.threshold", "between 2 and 2"),
    ('kind = "logistic"', 'kind = "forest"', "model.kind", "is not possible here; write one of"),
    ('kind = "logistic"', 'kind = "softmax"', "model.classes", "classes = 2"),
    ('kind = "logistic"', 'kind = "mlp"\nclasses = 2', "model.hidden", "hidden = [64]"),
    ('kind = "logistic"', 'kind = "logistic"\nclasses = 2', "model.classes", "no such key"),
    ('kind = "logistic"', 'kind = "linear"', "reveal.metrics", "mse"),
    ('["accuracy", "auc"]', '["gini"]', "reveal.metrics", "is not possible here; write one of"),
    ("batch_size = 16", "batch_size = 76", "train.batch_size", "75 rows"),
    ("learning_rate = 0.5", "learning_rate = 0", "train.optimizer.learning_rate", "above 0"),
    ("learning_rate = 0.5", "learning_rate = nan", "", "finite"),
    ("momentum = 0.9", "momentum = 1", "train.optimizer.momentum", "below 1"),
    ("seed = 7", 'seed = 7\nschedule = { name = "step" }', "train.schedule.every", "every"),
    (
        "seed = 7",
        'seed = 7\nschedule = { name = "cosine", every = 2 }',
        "train.schedule",
        "neither",
    ),
    (
        "[reveal]",
        "[fixed_point]\nfraction_bits = 30\n[reveal]",
        "fixed_point.fraction_bits",
        "between 12 and 26",
    ),
    (
        "[reveal]",
        "[fixed_point]\nactivation_limit = 0\n[reveal]",
        "fixed_point.activation_limit",
        "between 1",
    ),
]


@pytest.mark.parametrize(("old", "new", "key", "says"), WRONG)
def test_a_wrong_job_names_file_key_and_remedy(
    tmp_path: Path, old: str, new: str, key: str, says: str
) -> None:
    path = write_job(tmp_path, replaced(old, new))
    with pytest.raises(JobError) as caught:
        load_job(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert key in message
    assert says in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = 7", "sed = 7"),
        ("scale = 2", "scale = 0"),
        ("fraction = 0.25", "fraction = 1.0"),
        ("learning_rate = 0.5", "learning_rate = 0"),
        ("learning_rate = 0.5", "learning_rate = inf"),
        ('name = "study"', 'name = "study'),
    ],
)
def test_the_line_is_named(tmp_path: Path, old: str, new: str) -> None:
    text = replaced(old, new)
    line = text[: text.index(new)].count("\n") + 1
    path = write_job(tmp_path, text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    # A feature in a list of several lines is found by the line on which the list begins.
    first = text[: text.index("features = [")].count("\n") + 1
    shown = first if "scale = 0" in new else line
    assert f"{path}:{shown}:" in str(caught.value) or f"line {shown}" in str(caught.value)


def test_missing_unreadable_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path / "none.toml")
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="UTF-8"):
        load_job(binary)
    with pytest.raises(JobError, match=r"job: missing; write a section \[job\]"):
        load_job(write_job(tmp_path, "# nothing\n"))


def test_features_may_be_plain_names(tmp_path: Path) -> None:
    text = JOB.replace(
        JOB[JOB.index("features = [") : JOB.index("label =")], 'features = ["age", "dose"]\n'
    )
    assert [feature.name for feature in load_job(write_job(tmp_path, text)).features] == [
        "age",
        "dose",
    ]
