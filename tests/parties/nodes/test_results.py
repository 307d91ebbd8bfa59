"""What a node does not sign at the end of a run, without a run."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from parties.agreement import control
from parties.agreement.result import Artifact, Statement
from parties.errors import ContractError
from parties.nodes.node import _Node
from tests.parties.agreement.test_contract import CONTRACT

SID, DIGEST = bytes(range(32)), "ab" * 32
EVALUATOR = CONTRACT.roles.evaluators[0]
DONE = control.Done(b"{}", SID, b"outcome", {"sealed/x/model.envelope": DIGEST})
STATEMENT = Statement(
    CONTRACT.digest(),
    SID,
    b"outcome",
    (Artifact(EVALUATOR, "sealed/x/model.envelope", DIGEST), Artifact("other", "a/b", DIGEST)),
)


def signs(statement: Statement, me: str = EVALUATOR) -> list[bytes]:
    """The outcomes that the program of the node `me` was asked about before it would sign."""
    asked: list[bytes] = []
    node = SimpleNamespace(
        _me=me,
        _settings=SimpleNamespace(coordinator="desk"),
        _program=SimpleNamespace(check_outcome=asked.append),
    )
    mine = DONE if me == EVALUATOR else control.Done(b"{}", SID)
    text = statement.to_bytes()
    assert _Node._check_results(cast(Any, node), CONTRACT, mine, text) == text
    return asked


def test_what_a_node_saw_itself_is_signed_once_its_program_agrees() -> None:
    assert signs(STATEMENT) == [b"outcome"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contract": bytes(32)}, "the results of another run"),
        ({"sid": bytes(32)}, "the results of another run"),
        ({"artifacts": ()}, "the files of .* are not those that it sent"),
        (
            {"artifacts": (replace(STATEMENT.artifacts[0], digest="cd" * 32),)},
            "the files of .* are not those that it sent",
        ),
        (
            {"artifacts": (*STATEMENT.artifacts, Artifact(EVALUATOR, "sealed/y", DIGEST))},
            "the files of .* are not those that it sent",
        ),
        ({"outcome": b"another"}, "not those that .* took part in; it was not signed"),
    ],
)
def test_what_it_did_not_see_is_not_signed(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        signs(replace(STATEMENT, **changes))


def test_who_computes_nothing_leaves_the_openings_to_its_program() -> None:
    assert signs(replace(STATEMENT, outcome=b"of others"), "nobody") == [b"of others"]
