"""Rows a day: counted before they are used, kept over restarts, and not given anew by a clock."""

from pathlib import Path

import pytest

from mpc_train.commands.serving.quota import FileQuota
from mpc_train.errors import ConfigError


def test_rows_are_counted_by_client_model_and_day(tmp_path: Path) -> None:
    day = ["2026-01-01"]
    path = tmp_path / "quota.json"
    quota = FileQuota(path, lambda: day[0])
    assert quota.take("ann", "risk", 4096, 8192) and quota.take("ann", "risk", 4096, 8192)
    assert not quota.take("ann", "risk", 4096, 8192)
    assert quota.take("ann", "dose", 4096, 8192) and quota.take("bob", "risk", 4096, 8192)
    # Another process goes on from there; a clock that goes back changes nothing.
    day[0] = "2025-12-31"
    assert not FileQuota(path, lambda: day[0]).take("ann", "risk", 4096, 8192)
    day[0] = "2026-01-02"
    again = FileQuota(path, lambda: day[0])
    assert again.take("ann", "risk", 4096, 8192)
    assert path.stat().st_mode & 0o077 == 0


def test_a_count_that_cannot_be_read_stops_the_server(tmp_path: Path) -> None:
    path = tmp_path / "quota.json"
    for content in ("", "{}", '{"day": "x", "rows": {"a": {"b": -1}}}', "[" * 10_000):
        path.write_text(content)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="remove the file"):
            FileQuota(path)
