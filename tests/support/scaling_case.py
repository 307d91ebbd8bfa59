"""Columns of any width within their declared range, prepared over shares and by scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.pipeline import Pipeline, Term
from mpc_train.jobs.sealed import preparation_shapes
from mpc_train.owners.cells import WORD_BITS, Affine, cells, halves, joined_bits
from mpc_train.owners.local import Local, partials
from mpc_train.preparation.combined import parameters
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.joined import joined_parameters
from mpc_train.preparation.rows import Rows, prepared
from mpc_train.preparation.sealed import BITS, opened_parameters
from protocols.arrays import Reals, Words
from protocols.ring.fixed_point import decode, encode
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of

F = 20


@dataclass(frozen=True)
class Prepared:
    """inputs: of all rows. parameters: as an opened model has them; sealed: as evaluators seal
    them, decoded; some: of filled terms, whether there is a value. rounds: of everything."""

    inputs: Reals
    parameters: dict[str, Reals]
    sealed: dict[str, Reals]
    some: Words
    rounds: int


def terms(shared: str, count: int, missing: str = "error", bound: float = 1.0) -> Pipeline:
    return Pipeline(
        tuple(
            Term(f"x{k}", f"x{k}", shared=shared, missing=missing, bound=bound)  # type: ignore[arg-type]
            for k in range(count)
        )
    )


def over_shares(
    pipeline: Pipeline,
    owners: Sequence[Local],
    training: Sequence[NDArray[np.int64]],
    evaluators: int = 2,
    f: int = F,
) -> Prepared:
    """training: of each owner its training rows."""
    total = sum(len(rows) for rows in training)
    statistics = [
        partials(pipeline, local, rows, total) for local, rows in zip(owners, training, strict=True)
    ]
    values = np.concatenate([local.values for local in owners])
    there = np.concatenate([local.present for local in owners])
    words, low = _words(pipeline, values, halves(cells(pipeline, values), WORD_BITS), f)

    def found(role: Role, _: Rows) -> Parameters:
        brought = [secret(role, encode(one, 0)) for one in statistics]
        return parameters(pipeline, brought, total, 1, f)

    return _run(pipeline, words, low, there, found, evaluators, f)


def over_joined(
    pipeline: Pipeline,
    records: Local,
    rows: NDArray[np.int64],
    training: NDArray[np.int64],
    evaluators: int = 2,
    f: int = F,
) -> Prepared:
    """Rows of which the owner does not know which they are among its records."""
    word, filled = joined_bits(len(rows)), list(pipeline.filled)
    whole = cells(pipeline, records.values)
    there = np.ones(whole.shape, bool)
    for place, term in enumerate(pipeline.scaled):
        if term in filled:
            there[:, place] = records.present[:, filled.index(term)] == 1
    affine = Affine.of(whole, there, word)
    both = [half[rows] for half in halves(affine.numbers(whole, there), word)]
    words, low = _words(pipeline, records.values[rows], both, f)

    def found(role: Role, shared: Rows) -> Parameters:
        counted = secret(role, encode(affine.words, 0)) if pipeline.scaled else None
        return joined_parameters(pipeline, shared.select(training), counted, word, 1, f)

    return _run(pipeline, words, low, records.present[rows], found, evaluators, f)


def _words(pipeline: Pipeline, values: Reals, both: Sequence[Reals], f: int) -> tuple[Words, Words]:
    words = encode(values, f)
    words[:, list(pipeline.scaled)] = encode(both[0], 0)
    return words, encode(both[1], 0)


def _run(
    pipeline: Pipeline,
    words: Words,
    low: Words,
    there: Reals,
    find: Callable[[Role, Rows], Parameters],
    evaluators: int,
    f: int,
) -> Prepared:
    def program(role: Role) -> object:
        with np.errstate(over="ignore"):
            values = secret(role, words)
            fine = secret(role, low) if pipeline.scaled else None
            present = secret(role, encode(there, 0)) if pipeline.filled else None
            rows = Rows(values, fine, present)
            found = find(role, rows)
            inputs = prepared(pipeline, rows, found, f)
            named = {name: shares_of(value) for name, value in found.sealed.items()}
            some = [] if found.some is None else [shares_of(remask(found.some.shares()))]
            return named, shares_of(inputs), some, role.rounds

    results = run_lockstep(program, evaluators)
    sealed = {
        name: np.ldexp(combine_masked([named[name] for named, *_ in results]), -BITS[name])
        for name in preparation_shapes(pipeline)
    }
    inputs = decode(combine_masked([inputs for _, inputs, *_ in results]), f)
    some = np.empty(0, np.int64)
    if pipeline.filled:
        some = combine_masked([bits[0] for *_, bits, _ in results])
    parameters = opened_parameters(pipeline, sealed)
    return Prepared(inputs, parameters, sealed, some, results[0][3])
