"""What the commands of serving check before they wait, and for how long they wait."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpc_train.commands.nodes import coordinator_settings
from mpc_train.commands.serving.measure import _check_validator
from mpc_train.commands.serving.shares import RETURN_S
from mpc_train.errors import RefusedError
from mpc_train.run.node_config import Timeouts


def test_who_may_not_measure_hears_that_first() -> None:
    serve = SimpleNamespace(validators=("dora",))
    described: Any = SimpleNamespace(job=SimpleNamespace(name="study", serve=serve))
    _check_validator(described, "dora")
    with pytest.raises(RefusedError, match=r"does not allow eve to measure it; .* are: dora"):
        _check_validator(described, "eve")
    described.job.serve = None
    with pytest.raises(RefusedError, match="are: nobody"):
        _check_validator(described, "dora")


def test_a_service_waits_for_its_nodes_and_a_training_for_join_s() -> None:
    config: Any = SimpleNamespace(listen="tcp://127.0.0.1:0", timeouts=Timeouts(join_s=5))
    assert coordinator_settings(config, Path()).arrive_timeout_s == 5
    assert coordinator_settings(config, Path(), RETURN_S).arrive_timeout_s == RETURN_S
