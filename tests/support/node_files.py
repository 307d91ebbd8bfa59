"""Files of nodes, by default ann's, whose rules allow the job of `jobs`."""

import json
from collections.abc import Sequence
from pathlib import Path

from mpc_train.run.node_config import NodeConfig, load_node_config


def party_toml(
    name: str = "ann",
    *,
    recipients: Sequence[str] = ("ann", "office"),
    dealers: Sequence[str] = ("registry",),
    evaluators: Sequence[str] = ("ann", "bob", "cleo"),
    metrics: Sequence[str] = ("accuracy", "auc"),
    node: str = "",
    data: str = "",
    rules: str = "",
) -> str:
    """The text of a party's file. node, data, rules: further lines of these sections."""
    return f"""
[node]
name = "{name}"
{node}
[coordinator]
name = "desk"
address = "tcp://127.0.0.1:9"
[data]
{data}
[rules]
recipients = {json.dumps(recipients)}
dealers = {json.dumps(dealers)}
evaluators = {json.dumps(evaluators)}
metrics = {json.dumps(metrics)}
{rules}
"""


CONSENTING = party_toml(node='home = "home"', data='study = "ann.csv"', rules="least_group = 9")
"""Ann's, with her table of the job of `jobs`."""


def config_of(folder: Path, rules: str = "") -> NodeConfig:
    """Ann's file with more lines of rules, as her node reads it."""
    path = folder / "party.toml"
    path.write_text(f"{CONSENTING}{rules}\n")
    return load_node_config(path)
