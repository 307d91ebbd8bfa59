"""Who may ask, how much, what is written down; and that nobody's nonsense concerns another."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpc_train.errors import QueryError, QueryRefusedError
from mpc_train.homomorphic.parameters import OURS, SLOTS
from mpc_train.owners.local import local_terms
from tests.support.preparation_case import prepared_job, typed

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

from mpc_train.homomorphic import service
from mpc_train.homomorphic.asking import EncryptedPredictor, Question, describe
from mpc_train.homomorphic.keys import KeyPair
from mpc_train.homomorphic.messages import MEANINGS, Ask, Give, Refused, Show, encode
from mpc_train.homomorphic.service import Served
from tests.support.homomorphic import Desk, InnerLine, pair, served
from tests.support.serving import opened_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("model")
    job = prepared_job(folder, 'scale = "standard"\nmissing = "mean"')
    return served(opened_model(folder, job), clients=("ann", "bob"), rows=3 * SLOTS)


def question(line: InnerLine, keys: KeyPair) -> Question:
    return Question(line, keys, describe(line, "risk"))


def code_of(line: InnerLine, *parts: bytes) -> str:
    """The code with which a message is refused."""
    line.send(parts)
    found = msgspec.msgpack.decode(line.waiting.popleft()[0], type=Refused)
    assert not line.waiting
    return found.code


def ask(model: Served, **changes: object) -> tuple[bytes, ...]:
    whole = Ask("risk", model.description.digest)
    return encode(msgspec.structs.replace(whole, **changes), pair().public)


def test_predictions_are_those_of_the_opened_model(tmp_path: Path) -> None:
    predictor = opened_model(tmp_path, prepared_job(tmp_path))
    desk = Desk({"risk": served(predictor)})
    table = typed(300, 2)
    plain = predictor.predicted(typed(300, 2))
    asking = EncryptedPredictor.of(question(desk.line("ann"), pair()))
    found = asking.predicted(table)
    assert [row[0] for row in found] == [row[0] for row in plain]
    for ours, theirs in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours[1:], theirs[1:], rtol=0, atol=1e-4)
    assert desk.written == [(True, "ann", "risk", "")]
    assert desk.quota.rows == {("ann", "risk"): SLOTS}


def test_who_may_not_ask_does_not_learn_the_name(model: Served) -> None:
    desk = Desk({"risk": model})
    for client, name in (("cleo", "risk"), ("ann", "other")):
        with pytest.raises(QueryRefusedError, match="no model of this name"):
            describe(desk.line(client), name)
    line = desk.line("cleo")
    assert code_of(line, *ask(model)) == "unknown-model"


def test_a_spent_quota_is_refused_and_written_down(model: Served) -> None:
    desk = Desk({"risk": model})
    asking = question(desk.line("ann"), pair())
    local = local_terms(model.description.job.pipeline, typed(2, 1))
    for _ in range(3):
        asking.outputs(local)
    with pytest.raises(QueryRefusedError, match="spent"):
        asking.outputs(local)
    assert desk.written[-1] == (False, "ann", "risk", "quota")
    # The quota of another client is its own.
    question(desk.line("bob", b"2"), pair("bob")).outputs(local)


def test_a_request_counts_when_it_is_admitted(model: Served) -> None:
    """Whether its client stays or leaves; one that is not admitted does not count."""
    desk = Desk({"risk": model})
    assert code_of(desk.line("ann"), *ask(model, description=bytes(32))) == "changed"
    assert desk.quota.rows == {}
    desk.line("ann").send(ask(model))
    desk.service.on_lost(b"1")
    assert desk.quota.rows == {("ann", "risk"): SLOTS}


def test_each_fault_has_a_name_and_ends_only_its_own_request(model: Served) -> None:
    desk = Desk({"risk": model})
    other = desk.line("bob", b"2")
    other.send(encode(Ask("risk", model.description.digest), pair("bob").public))
    other.waiting.clear()
    line = desk.line("ann")
    column = np.zeros(1)
    weak = msgspec.structs.replace(OURS, primes=(*OURS.primes, OURS.primes[0]))
    scale = msgspec.structs.replace(OURS, input_bits=40)
    for parts, code in (
        ((b"",), "malformed"),
        ((), "malformed"),
        ((b"\xc1", b""), "malformed"),
        ((b"x" * 5000,), "malformed"),
        ((*encode(Show("risk")), b""), "malformed"),
        (ask(model)[:1], "malformed"),
        (ask(model, parameters=weak), "weak-parameters"),
        (ask(model, parameters=scale), "other-scale"),
        (ask(model, description=bytes(32)), "changed"),
        ((ask(model)[0], pair().public[:-1]), "size"),
        ((ask(model)[0], bytes(50 << 20)), "size"),
        (encode(Give(0), pair().encrypt(column)), "order"),
    ):
        assert code_of(line, *parts) == code, code
    for parts, code in (
        (encode(Give(0), pair("bob").encrypt(column)), "other-key"),
        (encode(Give(1), pair().encrypt(column)), "count"),
        (encode(Give(0), b""), "size"),
        (ask(model), "order"),
    ):
        desk.quota.rows.clear()
        line.send(ask(model))
        line.waiting.clear()
        assert code_of(line, *parts) == code, code
        assert desk.written[-1] == (False, "ann", "risk", code)
        assert code_of(line, *encode(Give(0), pair().encrypt(column))) == "order"
    # Bob's request goes on from where it was.
    other.send(encode(Give(0), pair("bob").encrypt(column)))
    assert len(other.waiting) == 1


def test_requests_at_once_are_limited(model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk({"risk": model})
    desk.line("ann").send(ask(model))
    # One for each client, whatever its connections.
    assert code_of(desk.line("ann", b"2"), *ask(model)) == "busy"
    monkeypatch.setattr(service, "MAX_REQUESTS", 1)
    assert code_of(desk.line("bob", b"3"), *ask(model)) == "busy"
    # A client that leaves, or says nothing, makes room.
    desk.service.on_lost(b"1")
    desk.line("bob", b"3").send(ask(model))
    desk.now += service.PATIENCE_S + 1
    line = desk.line("ann", b"4")
    line.send(ask(model))
    assert msgspec.msgpack.decode(line.waiting.popleft()[0]) == {"t": "go"}


def test_every_code_has_a_meaning(model: Served) -> None:
    line = desk_line(model)
    for code in MEANINGS:
        line.waiting.append(encode(Refused(code)))
        with pytest.raises(QueryRefusedError, match="company refuses: ") as caught:
            describe(line, "risk")
        assert caught.value.code == code
        line.waiting.clear()


def desk_line(model: Served) -> InnerLine:
    class Deaf(InnerLine):
        def send(self, parts: tuple[bytes, ...]) -> None:
            pass

    return Deaf(Desk({"risk": model}).service, "ann", b"1")


def test_a_server_that_answers_nonsense_is_named(model: Served) -> None:
    line = desk_line(model)
    asking = Question(line, pair(), model.description)
    local = local_terms(model.description.job.pipeline, typed(2, 1))
    for parts in ((b"",), (b"\xc1",), encode(Give(0), b""), encode(Refused("?" * 40))):
        line.waiting.append(parts)
        with pytest.raises(QueryError, match="company"):
            describe(line, "risk")
        line.waiting.append(parts)
        with pytest.raises(QueryError, match="company"):
            asking.outputs(local)


def test_what_the_server_sees_has_the_same_shape_for_all_records(model: Served) -> None:
    """Types, order and lengths are those of the model, not of the rows."""
    shapes = []
    for rows in (1, 77):
        desk = Desk({"risk": model})
        line = desk.line("ann")
        asking = question(line, pair())
        asking.outputs(local_terms(model.description.job.pipeline, typed(rows, rows)))
        shapes.append([tuple(map(len, parts)) for parts in line.seen])
    assert shapes[0] == shapes[1]
