"""What the nodes of a service sign: which models they serve, and whom.

The body of its contract describes each model: the job that its owners signed, and the session that
trained it. Nothing else decides what is computed: who may ask, how much and what comes
out stands in `[serve]` of that job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec

from mpc_train.errors import ArtifactError, JobError
from mpc_train.serving.offered import Offered
from mpc_train.shared.description import Description
from parties.agreement.contract import MAX_BODY_BYTES, MAX_JOB_NAME_BYTES, Roles
from protocols.functions.splines import constants_digest

MAX_MODELS = 16
_TAG = b"mpc-train/service/1"


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """models: as `Description` writes them. clients: those that are served, of all that the models'
    owners allow."""

    name: str
    models: tuple[str, ...]
    clients: tuple[str, ...]
    service: Literal[1] = 1


@dataclass(frozen=True)
class Agreed:
    """A checked body. models: in the order of the body, the newest version of a name last."""

    body: Body
    models: tuple[Description, ...]

    @classmethod
    def of(cls, name: str, models: Sequence[Description], clients: Sequence[str] = ()) -> Agreed:
        """A service of these models; for all clients of theirs, unless some are named. Raises
        JobError."""
        allowed = sorted({one for model in models for one in _clients(model)})
        said = tuple(each.to_bytes().decode() for each in models)
        body = Body(name, said, tuple(clients or allowed))
        return cls.from_bytes(msgspec.json.encode(body, order="deterministic"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Agreed:
        """Raises JobError unless it is the body of a service that this release can run."""
        try:
            if len(data) > MAX_BODY_BYTES:
                raise JobError(
                    f"the models of this service take {len(data)} bytes to describe, at most "
                    f"{MAX_BODY_BYTES}; serve fewer together"
                )
            body = msgspec.json.decode(data, type=Body)
            models = tuple(Description.from_bytes(text.encode()) for text in body.models)
        except (msgspec.MsgspecError, ValueError, RecursionError, ArtifactError) as error:
            raise JobError(f"not the body of a service: {error}") from error
        found = cls(body, models)
        found.check()
        return found

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self.body, order="deterministic")

    @property
    def name(self) -> str:
        return self.body.name

    @property
    def roles(self) -> Roles:
        job = self.models[0].job
        return Roles((), job.evaluators, job.dealer, (), clients=self.body.clients)

    def allows(self, roles: Roles) -> bool:
        """Whether these are the service's roles, in which clients may be missing: those whose cards
        the coordinator does not accept."""
        gone = self.roles.guests.difference(roles.clients)
        return roles == self.roles.without(gone)

    @cached_property
    def offered(self) -> tuple[Offered, ...]:
        """The models, with the number of each among those of its name."""
        seen: dict[str, int] = {}
        found = []
        for model in self.models:
            name = model.job.name
            seen[name] = seen.get(name, 0) + 1
            found.append(Offered(seen[name], model.job, model.digest))
        return tuple(found)

    def check(self) -> None:
        """Raise JobError with everything that is wrong."""
        name, models, clients = self.body.name, self.models, self.body.clients
        faults = []
        if not 1 <= len(name.encode()) <= MAX_JOB_NAME_BYTES or not name.isprintable():
            faults.append("the name is empty, too long or not printable")
        if not 1 <= len(models) <= MAX_MODELS:
            faults.append(f"it serves {len(models)} models; possible: 1 to {MAX_MODELS}")
        if len({model.digest for model in models}) != len(models):
            faults.append("a model is listed twice")
        if len({(model.job.evaluators, model.job.dealer) for model in models}) > 1:
            faults.append("its models have other evaluators, or another dealer, than one another")
        faults += [
            f"the owners of {model.job.name} have allowed nobody to ask it: its job has no "
            "[serve] clients"
            for model in models
            if not _clients(model)
        ]
        allowed = {one for model in models for one in _clients(model)}
        if not clients or len(set(clients)) != len(clients):
            faults.append("it needs clients, each of them once")
        if foreign := sorted(set(clients) - allowed):
            faults.append(f"no model's owners allow {', '.join(foreign)} to ask")
        if faults:
            raise JobError(f"the service {name!r}: {'; '.join(faults)}")

    def constants(self) -> bytes:
        """SHA-256 of all constants that nodes derive by themselves."""
        digest = hashlib.sha256(_TAG)
        for model in self.models:
            digest.update(constants_digest(model.job.fraction_bits))
        return digest.digest()


def _clients(model: Description) -> tuple[str, ...]:
    return () if model.job.serve is None else model.job.serve.clients
