"""What of a network's outputs leaves a service: what `[serve] answer` says, computed over shares.

    number        the outputs themselves, one a class for several classes
    probability   of the class 1 of two, or one a class
    class         the number of the likeliest class; of equal ones, the first of several, and the
                  class 1 of two, as `results.predicting` has it

With `decimals` d, what leaves is the whole number floor(10^d · v + 1/2), exactly for the v that the
shares hold: nothing of v below its last decimal reaches a client. Without it v leaves at the job's
scale, with the last bits that its computation happened to give.

Answers are secrets like their sources: whoever delivers them puts them under masks of their own, as
`protocols.shares.reveal` does. A client that shares in numbers outside of what its job states gets
an answer without a meaning, which may be outside of the answers that these functions describe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpc_train.errors import QueryError
from mpc_train.training.limits import most_of_ring
from mpc_train.training.plausible import SLACK
from protocols.arrays import Reals, Words
from protocols.comparison.compare import argmax, negative
from protocols.functions.scaling import floor_quotient
from protocols.functions.splines import sigmoid, softmax
from protocols.ring.fixed_point import decode
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.jobs.serve import Serve


def answer_width(job: Job) -> int:
    """The number of words of a row's answer."""
    return 1 if _serve(job).answer == "class" else job.outputs


def answer(job: Job, outputs: Masked) -> Masked:
    """The answers, [rows, answer_width], for outputs [rows, outputs] at scale 2^f.

    Rounds, beyond what the outputs need: number 0, probability 6 of two classes and about 20 of
    several, class 4 and 5 to 6; with decimals 6 more, but none with class.
    """
    serve, f = _serve(job), job.fraction_bits
    if serve.answer == "class":
        return _likeliest(outputs)
    found = outputs
    if serve.answer == "probability":
        found = sigmoid(outputs, f) if job.outputs == 1 else softmax(outputs, f)
    return found if serve.decimals is None else rounded(found, f, serve.decimals)


def rounded(x: Masked, fraction_bits: int, decimals: int) -> Masked:
    """floor(10^decimals · x + 1/2) exactly, for x at scale 2^fraction_bits. 6 rounds.

    Fits wherever x is within the range of a product and 10^decimals is at most 2^fraction_bits,
    which `checks.check_serve` asks for.
    """
    half = 1 << (fraction_bits - 1)
    return floor_quotient(x.scale(10**decimals).shift(half).shares(), fraction_bits)


def _likeliest(outputs: Masked) -> Masked:
    classes = outputs.shape[-1]
    if classes == 1:
        return remask(negative(outputs).negate().shares())
    numbers = np.arange(classes)
    shape = (*outputs.shape[:-1], 1)
    bits = argmax(outputs).shares()
    return remask(bits.linear(shape, lambda words: (words * numbers).sum(-1, keepdims=True)))


def values(job: Job, words: Words) -> Reals:
    """The answers as `serving.offered.Service.ask` returns them, for the words that arrived.

    words: int64[rows, answer_width]. A probability that the curves put beside [0, 1] by their error
    is moved to its end. Raises QueryError, which names the rows, for what cannot be an answer.
    """
    serve = _serve(job)
    if serve.answer == "class":
        found = words.astype(np.float64)
        low, high, slack = 0.0, float(job.classes - 1), 0.0
    else:
        low, high, slack = 0.0, 1.0, SLACK
        if serve.answer == "number":
            low, high = -float(most_of_ring(job)), float(most_of_ring(job))
        if serve.decimals is None:
            found = decode(words, job.fraction_bits)
        else:
            found = words / 10**serve.decimals
            slack += 10**-serve.decimals / 2
    beyond = ((found < low - slack) | (found > high + slack)).any(axis=1)
    if beyond.any():
        numbers = ", ".join(str(place + 1) for place in np.flatnonzero(beyond)[:5])
        raise QueryError(
            f"the model has no answer to row {numbers} of the question: values have left the range "
            "of the ring; compare the rows with the ranges of the job's schema"
        )
    return np.clip(found, low, high) if serve.answer == "probability" else found


def _serve(job: Job) -> Serve:
    if job.serve is None:
        raise QueryError(f"the job {job.name} has no [serve]", "unknown-model")
    return job.serve
