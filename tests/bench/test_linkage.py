"""What `linkage.py` prints for machines, in real processes."""

import json
import subprocess
import sys

import pytest

from tests.bench import linkage
from tests.support.patience import PATIENCE_S


@pytest.mark.slow
@pytest.mark.parametrize("membership", ["holders", "nobody"])
def test_its_report(membership: str) -> None:
    argv = [sys.executable, linkage.__file__, "--rows", "200", "--membership", membership]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["joined_rows"] == 140
    assert set(result["nodes"]) == {"owner-0", "owner-1", "dealer"}
    for node in result["nodes"].values():
        assert node["rows"] == 140 and node["link_s"] > 0
    # The dealer's corrections are for rows; it has no part in lists.
    assert result["nodes"]["dealer"]["bytes_sent"] < 200 * 23 * 8 * 2 + 1000
