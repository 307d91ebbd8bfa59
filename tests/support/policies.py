"""Policies for tests: of ann's node, for board and dpo to sign; they allow the job of `jobs`."""

from collections.abc import Iterable
from datetime import date
from pathlib import Path

import msgspec

from mpc_train.admission.policy import Signatures, read_policy, signed
from mpc_train.run.node_config import NodeConfig, load_node_config
from parties.keys.vault import MemoryVault

DAY = date(2030, 5, 17)
RULES = """
recipients = ["ann", "office"]
dealers = ["registry"]
evaluators = ["ann", "bob", "cleo"]
metrics = ["accuracy", "auc"]
least_group = 9
"""
NODE = """
node = { name = "ann", home = "home" }
coordinator = { name = "desk", address = "tcp://127.0.0.1:9" }
[data]
study = "ann.csv"
[policy]
file = "policy.toml"
signers = ["board", "dpo"]
"""


def policy_toml(number: int = 1, *, terms: str = "", rules: str = "", nodes: str = "ann") -> str:
    """The text of a policy. terms: its dates, by default all of 2030; rules: further lines."""
    dates = terms or "valid_from = 2030-01-01\nvalid_until = 2030-12-31"
    head = f'[policy]\nnodes = ["{nodes}"]\nnumber = {number}\n{dates}\n'
    return f"{head}[rules]{RULES}{rules}\n"


def node_with_policy(
    folder: Path,
    signers: Iterable[MemoryVault],
    text: str | None = None,
    node: str = NODE,
    day: date = DAY,
) -> NodeConfig:
    """Ann's file and the policy that it names, signed; not accepted yet."""
    path = folder / "policy.toml"
    path.write_text(policy_toml() if text is None else text)
    policy = read_policy(path)
    policy.signatures.unlink(missing_ok=True)
    for keys in signers:
        statements = signed(policy, keys.card.name, day, keys)
        policy.signatures.write_bytes(msgspec.json.encode(Signatures(statements)))
    (folder / "home").mkdir(exist_ok=True)
    (folder / "party.toml").write_text(node)
    return load_node_config(folder / "party.toml")
