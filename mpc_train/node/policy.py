"""The signed policy of a node: accepted with the cards of its roster, and remembered.

`<name>.policy` in the node's home keeps number and digest of the newest policy under which the node
was started, so that an older one that somebody puts back is refused. Who can write to the home can
remove that file; the audit log says as well which policy was in force.
"""

from dataclasses import replace
from datetime import date
from pathlib import Path

import msgspec

from mpc_train.admission.policy import (
    NONE_SEEN,
    Policy,
    PolicyRefusedError,
    Seen,
    check_policy,
    read_policy,
)
from mpc_train.errors import ConfigError, RefusedError
from mpc_train.run.node_config import NodeConfig
from mpc_train.run.place import Place
from parties.audit.entries import Kind
from parties.audit.log import AuditLog
from parties.files import locked, read_bounded, write_atomic
from parties.keys import lifetime
from parties.keys.roster import Roster
from parties.keys.services.service import KeyService

SUFFIX = ".policy"
MAX_SEEN_BYTES = 4096


def accepted(config: NodeConfig, roster: Roster, day: date) -> NodeConfig:
    """The node's file with the rules of the policy that it names, if it names one.

    Raises ConfigError for a file that is malformed, PolicyRefusedError for a policy that this node
    does not accept on this day. Remembers nothing.
    """
    place = config.policy
    if place is None:
        return config
    policy = read_policy(Path(place.file))
    cards = {card.name: card for card in roster.current(lifetime.now())}
    seen, me = _seen(config.place), config.place.name
    check_policy(policy, me, day, place.signers, place.least_signers, cards, seen)
    return replace(config, rules=policy.rules, accepted=policy)


def in_force(
    config: NodeConfig, roster: Roster, day: date, audit: AuditLog, keys: KeyService
) -> NodeConfig:
    """The same for a node that starts: remembers the policy, logs it or why it is refused, and
    gives the key of the log to the auditors whom the rules name.

    keys: unwraps the log's key. Raises RosterError for an auditor without a valid card.
    """
    try:
        config = accepted(config, roster, day)
    except PolicyRefusedError as error:
        audit.append(Kind.POLICY_REFUSED, {"why": error.codes})
        raise
    policy = config.accepted
    if policy is not None:
        audit.append(Kind.POLICY_ACCEPTED, {"policy": policy.digest, "number": policy.terms.number})
        remember(config.place, policy)
    current = roster.current(lifetime.now())
    audit.share_with(keys, [current.card(name) for name in config.rules.auditors])
    return config


def check_auditor(config: NodeConfig, roster: Roster, day: date) -> None:
    """Raise RefusedError if the rules name auditors and this node's own identity is none of them.

    A rule of this software: whoever has the identity and runs another program can read the log.
    """
    rules, me = accepted(config, roster, day).rules, config.place.name
    if rules.auditors and me not in rules.auditors:
        raise RefusedError(
            f"the audit log of {me} is for its auditors: {', '.join(rules.auditors)}. An auditor "
            "reads it with mpc-train audit show --log DIR --identity FILE"
        )


def remember(place: Place, policy: Policy) -> None:
    """Keep that the node has accepted this policy; raise ConfigError where that cannot be kept.

    One that another process of this node has accepted meanwhile stays if its number is higher.
    """
    path = _path(place)
    try:
        with locked(path.with_name(path.name + ".lock")):
            if _seen(place).number < policy.terms.number:
                seen = Seen(policy.terms.number, policy.digest)
                write_atomic(path, msgspec.json.encode(seen) + b"\n")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}), but the policy in force must be "
            "remembered; nothing was shared"
        ) from error


def _path(place: Place) -> Path:
    return place.home / f"{place.name}{SUFFIX}"


def _seen(place: Place) -> Seen:
    path = _path(place)
    try:
        found = msgspec.json.decode(read_bounded(path, MAX_SEEN_BYTES), type=Seen)
        if found.version != 1:
            raise ValueError(f"version {found.version}")
        return found
    except FileNotFoundError:
        return NONE_SEEN
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read, but it says which policy this node accepted last; restore "
            "it, or remove it if your organisation accepts that an older policy may be used again"
        ) from error
