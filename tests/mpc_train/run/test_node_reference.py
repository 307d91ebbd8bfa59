"""The reference of a node's file, and its samples, are what the code says."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from mpc_train.admission.policy import Terms, read_policy
from mpc_train.admission.rules import Rules
from mpc_train.run import node_config
from mpc_train.run.node_config import Timeouts, load_coordinator_config, load_node_config
from mpc_train.tables.source import Source
from tests.support import node_reference
from tests.support.node_reference import COORDINATOR, DOCS, PAGE, PARTY, POLICY, files

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", [PAGE, PARTY, COORDINATOR, POLICY])
def test_the_files_are_those_of_the_code(name: str) -> None:
    assert (DOCS / name).read_text() == files()[name], (
        "a key, its default or its docstring has changed: "
        "run .venv/bin/python -m tests.support.node_reference"
    )


def names(kind: type) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def test_the_sample_of_a_party_has_every_key_and_is_accepted() -> None:
    config = load_node_config(DOCS / PARTY)
    tree = tomllib.loads((DOCS / PARTY).read_text())
    # Either has the rules, so that the sample has the other as a comment.
    assert set(tree) == names(node_config._PartyFile) - {"policy"}
    assert "# [policy]" in (DOCS / PARTY).read_text()
    assert set(tree["node"]) == names(node_config._Node)
    assert set(tree["coordinator"]) == names(node_config._Peer)
    assert set(tree["network"]) == names(node_config._Network)
    assert set(tree["rules"]) == names(Rules)
    assert set(tree["timeouts"]) == names(Timeouts)
    tables = [table for table in tree["data"].values() if isinstance(table, dict)]
    assert {key for table in tables for key in table} == names(Source)
    assert config.place.run_dir == DOCS / "runs"
    assert set(config.data) == set(tree["data"])


def test_the_sample_of_a_coordinator_has_every_key_and_is_accepted() -> None:
    load_coordinator_config(DOCS / COORDINATOR)
    tree = tomllib.loads((DOCS / COORDINATOR).read_text())
    assert set(tree) == names(node_config._CoordinatorFile)
    assert set(tree["node"]) == names(node_config._Node)
    assert set(tree["network"]) == {"listen"}
    assert set(tree["run"]) == names(node_config._Run)


def test_the_sample_of_a_policy_has_every_key_and_is_accepted() -> None:
    found = read_policy(DOCS / POLICY)
    tree = tomllib.loads((DOCS / POLICY).read_text())
    assert set(tree["policy"]) == names(Terms) and set(tree["rules"]) == names(Rules)
    assert found.terms.number == 1


def keys_of(section: str) -> dict[str, str]:
    """The keys of a section of the page, with the default that stands there."""
    text = (DOCS / PAGE).read_text()
    part = text.split(f"### `[{section}]`\n", 1)[1].split("\n#", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| .*? \| (needed|none|`[^|]*`) \| ", part, re.MULTILINE))


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("node", node_config._Node),
        ("coordinator", node_config._Peer),
        ("vault", node_config._Vault),
        ("network", node_config._Network),
        ("data", Source),
        ("rules", Rules),
        ("policy", node_config.PolicyPlace),
        ("timeouts", Timeouts),
        ("run", node_config._Run),
    ],
)
def test_the_page_has_every_key_with_its_default(section: str, kind: type) -> None:
    said = keys_of(section)
    assert set(said) == names(kind)
    for field in msgspec.structs.fields(kind):
        needed = field.default is msgspec.NODEFAULT
        needed = needed and field.default_factory is msgspec.NODEFAULT
        assert (said[field.encode_name] == "needed") == needed
        if isinstance(field.default, int):
            assert said[field.encode_name] == f"`{str(field.default).lower()}`"


def test_time_limits_stand_there_with_their_places() -> None:
    text = (DOCS / PAGE).read_text()
    limits = text.split("## Time limits", 1)[1]
    assert f"none for `silence_s` ({Timeouts().silence_s} s) counts as broken" in limits
    assert f"{Timeouts().join_s} s and {Timeouts().peer_s} s by default" in limits
    assert f"`reconnect_s` ({Timeouts().reconnect_s} s)" in limits
    assert "`join_s`" in limits and "`peer_s`" in limits


def test_every_key_of_the_examples_is_on_the_page() -> None:
    paths = list((ROOT / "examples" / "three_machines").glob("*.toml"))
    assert len(paths) >= 5
    for path in paths:
        tree = tomllib.loads(path.read_text())
        for section in set(tree) - {"data", "warm_start"}:
            assert set(tree[section]) <= set(keys_of(section)), (path, section)


def test_a_key_without_a_docstring_is_an_error() -> None:
    class Bare(msgspec.Struct):
        key: str
        other: int = 1
        """Said."""

    with pytest.raises(LookupError, match=r"Bare\.key has no docstring"):
        node_reference.rows(Bare)


@pytest.mark.parametrize(
    "value", ["", 'a"b\\', "ü\n", 1, True, 0.5, ["a", "b"], {"a b": {"c": [1]}}, {}, []]
)
def test_values_are_spelt_as_toml_reads_them(value: object) -> None:
    assert tomllib.loads(f"key = {node_reference.toml(value)}") == {"key": value}
