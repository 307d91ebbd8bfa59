"""A join by name and date of birth, of which one owner writes two digits of the year."""

from pathlib import Path

import pytest

from tests.support.cases import CASES, run_case


def test_without_a_pivot_the_form_is_refused_by_name(tmp_path: Path) -> None:
    run = run_case("12", tmp_path)
    assert run.status == 3
    assert "data.shop.date_format: %d.%m.%y has years of two digits" in run.words
    assert "date_pivot = 1930" in run.words


@pytest.mark.slow
def test_with_one_every_record_is_joined(tmp_path: Path) -> None:
    def declared(job: str) -> str:
        local = tmp_path / "12" / "local.toml"
        text = (CASES / "12" / "local.toml").read_text()
        local.write_text(text.replace('"%d.%m.%y"', '"%d.%m.%y", date_pivot = 1930'))
        return job

    run = run_case("12", tmp_path, "--compare", change=declared)
    assert run.status == 0, run.words
    assert run.record["joined_rows"] == 60
    assert run.record["max_weight_difference"] < 1e-3
