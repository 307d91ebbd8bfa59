"""The keys that a job's results would be sealed to: what a node allows, and what is said of them.

A model that is sealed to a key that is not post-quantum can be kept today and opened once a quantum
computer breaks that key. Each organisation whose data are in the model decides whether that is
acceptable: its node refuses such keys unless its rules list their kind.
"""

from collections.abc import Mapping

from mpc_train.admission.rules import Rules
from mpc_train.base.strict_toml import quoted
from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job
from protocols.sealing.recipient_keys import RecipientKey


def check_recipient_keys(rules: Rules, job: Job, keys: Mapping[str, RecipientKey]) -> None:
    """Raise RefusedError if a reader's key is of a kind that the rules do not list.

    keys: by name, those of the job's names that have a card.
    """
    found = _kinds(job, keys)
    broken = {name: kind for name, kind in found.items() if kind not in rules.recipient_keys}
    if broken:
        who = ", ".join(f"{name} ({kind})" for name, kind in broken.items())
        allowed = list(dict.fromkeys([*rules.recipient_keys, *broken.values()]))
        raise RefusedError(
            f"the job {job.name!r} breaks this node's rules: results would be sealed to the keys "
            f"of {who}, of kinds that are not listed under recipient_keys. Nothing was shared. Ask "
            "them for a card with the default key, or, only if your organisation agrees, write "
            f"into [rules] of this node's file: recipient_keys = {quoted(allowed)}"
        )


def key_cautions(job: Job, keys: Mapping[str, RecipientKey]) -> list[str]:
    """What people must know about the readers' keys before they agree to the job."""
    return [
        f"results are sealed to a {kind} key of {name}, which is not post-quantum: who keeps the "
        "sealed files could open them once a quantum computer breaks such keys"
        for name, kind in _kinds(job, keys).items()
        if not keys[name].post_quantum
    ]


def _kinds(job: Job, keys: Mapping[str, RecipientKey]) -> dict[str, str]:
    readers = dict.fromkeys((*job.recipients, *job.reveal.metrics_to))
    return {name: keys[name].kind for name in readers if name in keys}
