"""What evaluators, dealer, coordinator and other clients see of a question to a service.

Whole requests, from the parts that a client sends to the answers that it gets: labels, sizes and
order do not depend on what is asked, and what is sent is uniform (tests/support/uniformity.py).
What the client itself gets adds up to the answer and to nothing else. The coordinator sees of all
this no more than sizes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.owners.local import Local
from mpc_train.serving import messages
from mpc_train.serving import program as program_module
from mpc_train.shared.agreeing import PROOF, TOLD
from protocols.roles.frames import LABEL
from tests.mpc_train.serving.test_program import CLASSES, job_of
from tests.support.house import Asker, House, only_units_of
from tests.support.jobs import JOB
from tests.support.lockstep import LockstepLoopback
from tests.support.served import shares_of, some_weights
from tests.support.uniformity import FEW, check_uniform

ROWS = Local(np.array([[0.5, -1.25]]), np.ones((1, 0)))
QUESTIONS = {
    "zeros": np.zeros((2, 2)),
    "large": np.full((2, 2), 6.5),
    "different": np.array([[0.25, -3], [-7, 1e-6]]),
}
PUBLIC = {PROOF, TOLD, messages.BATCH, messages.ORDER}
"""What is sent besides: proofs under pairwise keys, and what is asked when, and how much of it."""


def sizes(house: House, clinic: Asker, parts: dict[str, Any]) -> list[Any]:
    """All that anybody sees without a key of it, and all sizes and labels under the keys."""
    found: list[Any] = [
        (*pair, label, payload if label in (messages.BATCH, messages.ORDER) else len(payload))
        for pair, sent in sorted(house.net.transcript.items())
        for label, payload in sent
    ]
    found += [(name, len(heard.data)) for name, heard in parts.items()]
    for name in house.names:
        found += [(name, len(data)) for data in house.queues[name].answers[clinic.visit, 1]]
    return found


@pytest.mark.parametrize("answer", ["number", "probability", "class"])
@pytest.mark.parametrize("evaluators", [2, 3])
def test_what_is_asked_changes_no_label_no_size_and_no_order(
    tmp_path: Path, evaluators: int, answer: str
) -> None:
    job = job_of(tmp_path, evaluators, CLASSES, answer=answer)
    seen = []
    for seed, values in enumerate(QUESTIONS.values()):
        house = House([shares_of(job, some_weights(job), seed)], seed)
        clinic, practice = Asker("clinic", house), Asker("practice", house)
        (model,) = house.models
        parts = clinic.asks(model, Local(values, np.ones((2, 0))))
        house.serve([parts, practice.asks(model, ROWS)])
        assert not isinstance(clinic.answer(model, 1, 2), list)
        seen.append(sizes(house, clinic, parts))
    assert seen[0] == seen[1] == seen[2]
    # Neither do rows below the number to which they are padded.
    house = House([shares_of(job, some_weights(job))])
    clinic, practice = Asker("clinic", house), Asker("practice", house)
    parts = clinic.asks(model, Local(np.ones((9, 2)), np.ones((9, 0))))
    house.serve([parts, practice.asks(model, ROWS)])
    assert sizes(house, clinic, parts) == seen[0]


@pytest.mark.parametrize(
    ("evaluators", "text", "serve"),
    [
        (2, JOB, {"answer": "probability"}),
        *(
            pytest.param(evaluators, text, serve, marks=pytest.mark.slow)
            for evaluators in (2, 3)
            for text in (JOB, CLASSES)
            for serve in (
                {"answer": "number"},
                {"answer": "number", "decimals": 2},
                {"answer": "probability"},
                {"answer": "probability", "decimals": 1},
                {"answer": "class"},
            )
        ),
    ],
)
def test_what_is_sent_is_uniform(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluators: int,
    text: str,
    serve: dict[str, Any],
) -> None:
    """Of the same question to the same model, under fresh keys and shares."""
    only_units_of(1, monkeypatch)
    monkeypatch.setattr(program_module, "MOST_UNITS", 1)
    job = job_of(tmp_path, evaluators, text, **serve)

    def run(seed: int, net: LockstepLoopback) -> None:
        house = House([shares_of(job, some_weights(job), seed)], seed)
        visit = hashlib.sha256(f"visit {seed}".encode()).digest()[:16]
        clinic, (model,) = Asker("clinic", house, visit), house.models
        parts = clinic.asks(model, ROWS)
        house.serve([parts], [clinic.asks(model, ROWS)])
        net.transcript.update(transcript_of(house, clinic, parts))

    check_uniform(run, FEW, meant=("clinic",))


def transcript_of(house: House, clinic: Asker, parts: dict[str, Any]) -> dict[Any, Any]:
    """What is random of one session with two questions: units made and not used are like those
    that are."""
    found: dict[Any, Any] = {}
    dealer, used = house.agreed.roles.dealer, 3
    for (sender, receiver), sent in house.net.transcript.items():
        frames = []
        for label, payload in sent:
            if label in PUBLIC:
                continue
            label = label[4:] if sender == dealer else label
            if LABEL.unpack(label)[1] <= used:
                frames.append((label, payload))
        found["dealer" if sender == dealer else sender, receiver] = frames
    last = house.names[-1]
    for name, heard in parts.items():
        words = bytes(heard.data)[messages.HEAD_BYTES :]
        assert bool(words) == (name == last)
        found["clinic", name] = [(b"question", words)]
        said = [house.queues[name].answers[clinic.visit, number] for number in (1, 2)]
        found[name, "clinic"] = [(b"answer", data[1:]) for (data,) in said]
    return found
