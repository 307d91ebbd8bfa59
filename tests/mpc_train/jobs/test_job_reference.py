"""The page that lists every key of a job and of a schema is that of the code."""

from tests.support.job_reference import DOCS, PAGE, page


def test_the_page_is_that_of_the_code() -> None:
    assert (DOCS / PAGE).read_text() == page(), (
        "run .venv/bin/python -m tests.support.job_reference"
    )


def test_every_section_and_the_schema_are_there() -> None:
    said = page()
    for key in ("data.features", "prepare.columns", "reveal.noise", "serve.drift", "train.loss"):
        assert f"## `{key}`" in said, key
    for key in ("bins", "other", "every_rows", "least_group", "missing"):
        assert f"| `{key}` |" in said, key
