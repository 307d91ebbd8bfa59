"""A whole service in one process: what clients are answered, and what hostile ones cannot do."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace

from mpc_train.admission.load import load_job
from mpc_train.errors import QueryError, QueryRefusedError
from mpc_train.jobs.job import Job
from mpc_train.owners.local import Local
from mpc_train.results.plain_model import plain_module
from mpc_train.serving import desk as desk_module
from mpc_train.serving import lanes, messages
from mpc_train.serving import program as program_module
from mpc_train.serving.allowance import Allowance
from mpc_train.serving.desk import Answers, Kept, ServiceDesk
from mpc_train.serving.journal import Journal
from mpc_train.serving.lanes import BUCKETS, WIDE_ROWS, unit_rows
from mpc_train.serving.messages import Batch, Part
from mpc_train.serving.monitoring.record import Record
from mpc_train.serving.offered import Offered
from mpc_train.serving.program import (
    MOST_HELD,
    MOST_WAITING,
    STRIKES,
    Asked,
    Evaluation,
    NoDesk,
)
from parties.agreement.visitors import MAX_NUMBER
from parties.audit.entries import Kind
from parties.errors import AbortedError, AuditError
from parties.nodes.node import ending
from protocols.errors import FrameError, InterruptedRunError, PeerLostError
from tests.support.house import Asker, House, in_no_time, only_units_of
from tests.support.jobs import JOB, replaced, write_job
from tests.support.served import kept_in_shares, shares_of, some_weights

TOLERANCE = 2**-10
CLASSES = replaced('kind = "logistic"', 'kind = "mlp"\nhidden = [5]\nclasses = 3', JOB)
CLASSES = replaced('metrics = ["accuracy", "auc"]', 'metrics = ["accuracy"]', CLASSES)


def job_of(folder: Path, evaluators: int = 2, text: str = JOB, **serve: Any) -> Job:
    folder.mkdir(exist_ok=True)
    job = kept_in_shares(load_job(write_job(folder, text)), **serve)
    roles = msgspec.structs.replace(job.job, evaluators=("ann", "bob", "cleo")[:evaluators])
    return msgspec.structs.replace(job, job=roles)


def house_of(*jobs: Job, **settings: Any) -> House:
    return House([shares_of(job, some_weights(job)) for job in jobs], **settings)


def rows_of(count: int, seed: int = 3) -> Local:
    return Local(np.random.default_rng(seed).normal(0, 1, (count, 2)), np.ones((count, 0)))


def in_the_clear(job: Job, rows: Local) -> np.ndarray:
    module = plain_module(job).double().eval()
    weights = some_weights(job)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        found = module(torch.from_numpy(rows.values))
    serve = job.serve
    assert serve is not None
    if serve.answer == "class":
        found = (found > 0).double() if job.outputs == 1 else found.argmax(1, keepdim=True)
    elif serve.answer == "probability":
        found = torch.sigmoid(found) if job.outputs == 1 else torch.softmax(found, 1)
    if serve.decimals is not None:
        found = torch.floor(found * 10**serve.decimals + 0.5) / 10**serve.decimals
    result: np.ndarray = found.numpy()
    return result


def right(asker: Asker, model: Offered, number: int, rows: Local, within: float = 0.0) -> None:
    answer = asker.answer(model, number, len(rows.values))
    assert not isinstance(answer, list), answer
    expected = in_the_clear(model.job, rows)
    assert np.abs(answer - expected).max() <= TOLERANCE + within


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("text", [JOB, CLASSES], ids=["logistic", "classes"])
@pytest.mark.parametrize(
    "serve",
    [
        {"answer": "number"},
        {"answer": "number", "decimals": 2},
        {"answer": "probability"},
        {"answer": "probability", "decimals": 1},
        {"answer": "class"},
    ],
    ids=str,
)
def test_answers_are_those_of_the_model_in_the_clear(
    tmp_path: Path, evaluators: int, text: str, serve: dict[str, Any]
) -> None:
    house = house_of(job_of(tmp_path, evaluators, text, **serve))
    (model,) = house.models
    clinic, practice = Asker("clinic", house), Asker("practice", house)
    one, three, many = rows_of(1), rows_of(3, 4), rows_of(9, 5)
    house.serve(
        [clinic.asks(model, one)],
        [clinic.asks(model, three), practice.asks(model, one), practice.asks(model, many)],
    )
    # A last digit may be off by one where the exact value is close to the middle of two.
    within = 10.0 ** -serve["decimals"] if "decimals" in serve else 0.0
    right(clinic, model, 1, one, within)
    right(clinic, model, 2, three, within)
    right(practice, model, 1, one, within)
    right(practice, model, 2, many, within)
    # Those that come together are computed together.
    assert house.reports[house.names[0]]["batches"] == 2
    assert house.used_twice() == 0 and house.drawn


def test_two_models_and_units_that_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are ordered again, and no piece of keystream is drawn twice over all of it."""
    monkeypatch.setattr(program_module, "MOST_UNITS", 2)
    house = house_of(job_of(tmp_path / "one"), job_of(tmp_path / "other", text=CLASSES))
    one, other = house.models
    clinic = Asker("clinic", house)
    rows = [rows_of(1 + turn % 3, turn) for turn in range(9)]
    house.serve(*([clinic.asks((one, other)[turn % 2], each)] for turn, each in enumerate(rows)))
    for turn, each in enumerate(rows):
        right(clinic, (one, other)[turn % 2], turn + 1, each)
    assert house.used_twice() == 0
    assert {key[0] for key in house.drawn} == {*house.names, "registry"}


def test_what_is_made_ahead_is_shared_by_all_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several models do not fill more memory than one does, but for two units of each kind."""
    room, sizes, ordered = 1 << 20, dict[int, int](), dict[int, int]()
    monkeypatch.setattr(program_module, "AHEAD_BYTES", room)
    order = program_module.Evaluation._ask_dealer

    def noted(self: Any, lane: int, units: int) -> None:
        if lane < len(self._unit_bytes):  # not the unit that says how large units are
            sizes[lane], ordered[lane] = self._unit_bytes[lane], units
        order(self, lane, units)

    monkeypatch.setattr(program_module.Evaluation, "_ask_dealer", noted)
    house = house_of(job_of(tmp_path / "one"), job_of(tmp_path / "other", text=CLASSES))
    clinic = Asker("clinic", house)
    house.serve([clinic.asks(house.models[0], rows_of(1))])
    most = room // len(sizes)
    assert len(sizes) == 8 and {sizes[lane] <= most // 3 for lane in sizes} == {True, False}
    assert ordered == {
        lane: min(program_module.MOST_UNITS, max(2, most // size)) for lane, size in sizes.items()
    }


@pytest.mark.parametrize(
    ("questions", "batches"), [([128] * 4, 1), ([128] * 3, 1), ([128] * 2, 2), ([100, 9, 1], 2)]
)
def test_full_questions_that_come_together_share_a_wide_unit(
    tmp_path: Path, questions: list[int], batches: int
) -> None:
    """If they fill most of it; padded, 100, 9 and 1 rows are 145, of which 128 come first."""
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    clinic = Asker("clinic", house)
    rows = [rows_of(count, seed) for seed, count in enumerate(questions)]
    house.serve([clinic.asks(model, each) for each in rows])
    for number, each in enumerate(rows, start=1):
        right(clinic, model, number, each)
    assert house.reports[house.names[0]]["batches"] == batches
    assert house.used_twice() == 0


def test_clients_are_answered_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks once does not wait for all that another has asked, also of another model."""
    only_units_of(16, monkeypatch)
    house = house_of(job_of(tmp_path / "one"), job_of(tmp_path / "other", text=CLASSES))
    one, other = house.models
    clinic, practice = Asker("clinic", house), Asker("practice", house)
    many = [clinic.asks(one, rows_of(9)) for _ in range(4)]
    answered: list[bytes] = []
    monkeypatch.setattr(
        house.queues["ann"], "answer", lambda visit, number, data: answered.append(visit)
    )
    house.serve([*many, practice.asks(other, rows_of(2)), practice.asks(one, rows_of(2))])
    order = [visit == practice.visit for visit in answered]
    assert order == [False, True, False, True, False, False]


def test_a_unit_has_the_first_question_of_each_client_before_the_second_of_any() -> None:
    turns = Evaluation.__new__(Evaluation)
    clients = ["clinic", "clinic", "clinic", "practice", "practice"]
    asked = [Asked(c, b"", n, 0.0, 0, 1, memoryview(b""), None, b"") for n, c in enumerate(clients)]
    turns._waiting = OrderedDict((each.key, each) for each in asked)
    turns._led = {}
    assert [each.number for each in turns._in_turn()] == [0, 3, 1, 4, 2]
    turns._led = {"clinic": 1}
    assert [each.number for each in turns._in_turn()] == [3, 0, 4, 1, 2]


def announcing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Batch], Batch]) -> None:
    """The first evaluator computes what it should, and tells the others something else."""
    announce = Evaluation._announce

    def lying(self: Evaluation, batch: Batch) -> None:
        announce(self, change(batch) if batch.parts else batch)

    monkeypatch.setattr(Evaluation, "_announce", lying)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: replace(batch, lane=99), "ann announced a batch of no lane"),
        (lambda batch: replace(batch, lane=-1), "malformed batch"),
        (lambda batch: replace(batch, parts=batch.parts * 2), "more rows than a unit has"),
        (lambda batch: replace(batch, parts=batch.parts * 513), "malformed batch"),
        (lambda batch: replace(batch, parts=(replace(batch.parts[0], rows=129),)), "malformed"),
        (lambda batch: replace(batch, parts=(replace(batch.parts[0], rows=0),)), "malformed"),
    ],
)
def test_what_a_first_evaluator_may_not_announce_ends_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Batch], Batch], said: str
) -> None:
    only_units_of(1, monkeypatch)
    house = house_of(job_of(tmp_path))
    announcing(monkeypatch, change)
    with pytest.raises((QueryError, FrameError), match=said):
        house.serve([Asker("clinic", house).asks(house.models[0], rows_of(1))])


def test_an_order_for_no_lane_ends_the_dealer_s_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_units_of(1, monkeypatch)
    house = house_of(job_of(tmp_path))
    ask = Evaluation._ask_dealer
    monkeypatch.setattr(Evaluation, "_ask_dealer", lambda self, lane, units: ask(self, 99, units))
    with pytest.raises(QueryError, match="ann ordered material for no lane"):
        house.serve([])


def test_parts_that_are_announced_twice_or_of_another_model_are_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor counted again, by evaluators that follow one which says so."""
    only_units_of(16, monkeypatch)
    monkeypatch.setattr(lanes, "BUCKETS", (1, 16))
    house = house_of(job_of(tmp_path / "one"), job_of(tmp_path / "other", text=CLASSES))
    one, other = house.models
    for name in house.names:
        (tmp_path / name).mkdir()
    desks = {name: Counting(tmp_path / name) for name in house.names}
    house.desks = dict(desks)
    clinic, practice, rows = Asker("clinic", house), Asker("practice", house), rows_of(1)

    def wrong(waiting: Sequence[Asked], model: int, most: int) -> list[Part]:
        return [Part(*asked.key, asked.rows) for asked in waiting] * 2

    monkeypatch.setattr(program_module, "_together", wrong)
    house.serve([clinic.asks(one, rows), practice.asks(other, rows)])
    right(clinic, one, 1, rows)
    refused = [f"{name}: malformed" for name in house.names]
    assert practice.answer(other, 1, 1) == refused
    assert desks[house.names[-1]].spent == 1
    assert all(len(each) == 1 for queue in house.queues.values() for each in queue.answers.values())
    assert house.used_twice() == 0


def test_questions_have_the_sizes_of_units_and_no_other() -> None:
    """So that nobody sees how many rows a client has, and no row is computed uncounted."""
    for rows in (0, *BUCKETS):  # of 0 nothing is computed: it asks how many are left
        head = memoryview(bytes(32) + rows.to_bytes(4, "big") + b"n" * 16)
        assert messages.question_head("clinic", head) == ("00" * 32, rows, b"n" * 16)
        with pytest.raises(QueryError, match="without a head"):
            messages.question_head("clinic", head[:-1])
    for rows in (2, 17, 127, 129, WIDE_ROWS, 2**32 - 1):
        head = memoryview(bytes(32) + rows.to_bytes(4, "big") + b"n" * 16)
        with pytest.raises(QueryError, match=f"a question of {rows} rows; possible"):
            messages.question_head("clinic", head)


def test_the_longest_batch_is_within_what_is_read() -> None:
    visits = [Part("c" * 63, bytes(16), MAX_NUMBER - 1, 1)] * WIDE_ROWS
    assert len(messages.encoded(Batch(2**32, tuple(visits)))) <= messages.MAX_BATCH_BYTES


@pytest.mark.parametrize("evaluator", ["ann", "bob"])
def test_a_model_that_one_evaluator_retires_answers_no_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    evaluator: str,
) -> None:
    monkeypatch.setattr(program_module, "LOOK_S", 0.0)
    retired: set[tuple[str, str]] = set()
    house = house_of(
        job_of(tmp_path / "one"),
        job_of(tmp_path / "other", text=CLASSES),
        keeps=lambda name, model: (name, model.digest) not in retired,
    )
    one, other = house.models
    clinic, rows, once = Asker("clinic", house), rows_of(2), b"n" * 16
    house.serve([clinic.asks(one, rows, once)])
    right(clinic, one, 1, rows)
    retired.add((evaluator, one.digest))
    house.serve(
        [clinic.asks(one, rows), clinic.asks(other, rows)],
        [clinic.asks(one, rows, once)],  # whose answer was kept, too
    )
    assert clinic.answer(one, 2, 2) == [f"{evaluator}: unknown-model"]
    right(clinic, other, 3, rows)
    (refused,) = clinic.answer(one, 4, 2)
    assert isinstance(refused, str) and refused.startswith(f"{evaluator}: un")
    # Its operator hears so, not once a question, and what becomes of the service.
    said = [each for each in caplog.messages if "was destroyed here" in each]
    assert 1 <= len(said) <= 2 and "no session begins while the file" in said[0]


@pytest.mark.parametrize("evaluator", ["ann", "bob"])
def test_a_model_that_is_retired_meanwhile_is_refused_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluator: str
) -> None:
    """Each evaluator looks into its vault once a second, not for each question; what was destroyed
    does not come back."""
    only_units_of(1, monkeypatch)
    now, looked = [0.0], Counter[str]()

    class Clock:
        perf_counter = staticmethod(program_module.time.perf_counter)

        @staticmethod
        def monotonic() -> float:
            return now[0]

    def keeps(name: str, model: Offered) -> bool:
        looked[name] += 1
        return name != evaluator or looked[name] == 1

    monkeypatch.setattr(program_module, "time", Clock)
    house = house_of(job_of(tmp_path), keeps=keeps)
    next_step = house.next_step

    def later() -> None:
        now[0] += 0.6
        next_step()

    monkeypatch.setattr(house, "next_step", later)
    (model,), clinic, rows = house.models, Asker("clinic", house), rows_of(1)
    house.serve(*([clinic.asks(model, rows)] for _ in range(4)))
    right(clinic, model, 1, rows)
    right(clinic, model, 2, rows)  # 0.6 s after the first look
    for number in (3, 4):
        assert clinic.answer(model, number, 1) == [f"{evaluator}: unknown-model"]
    assert looked[evaluator] == 2


def test_rows_of_a_retired_model_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_units_of(1, monkeypatch)
    house = house_of(job_of(tmp_path), keeps=lambda name, model: name != "ann")
    desk = house.desks["ann"] = Counting(tmp_path)
    (model,), clinic = house.models, Asker("clinic", house)
    house.serve([clinic.asks(model, rows_of(1))])
    assert clinic.answer(model, 1, 1) == ["ann: unknown-model"]
    assert desk.spent == 0


def test_networks_of_many_values_have_no_wide_units(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    assert unit_rows(job) == (*BUCKETS, WIDE_ROWS)
    wide = replaced('kind = "logistic"', 'kind = "mlp"\nhidden = [1100, 1100]\nclasses = 2', JOB)
    wide = replaced('metrics = ["accuracy", "auc"]', 'metrics = ["accuracy"]', wide)
    assert unit_rows(job_of(tmp_path / "wide", text=wide)) == BUCKETS


def without(name: str, parts: dict[str, Any]) -> dict[str, Any]:
    return {each: heard for each, heard in parts.items() if each != name}


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_part_that_an_evaluator_lacks_harms_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluators: int
) -> None:
    in_no_time(monkeypatch)
    house = house_of(job_of(tmp_path, evaluators))
    (model,) = house.models
    clinic, practice, rows = Asker("clinic", house), Asker("practice", house), rows_of(2)
    half = without(house.names[-1], clinic.asks(model, rows))
    house.serve([half, practice.asks(model, rows)])
    said = clinic.answer(model, 1, 2)
    assert said == [f"{house.names[-1]}: unavailable"]
    right(practice, model, 1, rows)


def test_parts_that_differ_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rows, in the model, or in their size: who asked hears of it, and nobody waits for ever."""
    in_no_time(monkeypatch)
    house = house_of(job_of(tmp_path / "one"), job_of(tmp_path / "other", text=CLASSES))
    one, other = house.models
    clinic, practice = Asker("clinic", house), Asker("practice", house)
    steps = []
    few, many = clinic.asks(one, rows_of(1)), clinic.asks(one, rows_of(2))
    for parts, last in ((few, many), (many, clinic.asks(other, rows_of(2)))):
        clinic.number += 1
        said = {"ann": parts["ann"].data, "bob": last["bob"].data}
        steps.append([clinic.sends({name: bytes(data) for name, data in said.items()})])
    clinic.number += 1
    longer = {"ann": bytes(few["ann"].data), "bob": bytes(few["bob"].data) + bytes(8)}
    steps.append([clinic.sends(longer), practice.asks(one, rows_of(1))])
    house.serve(*steps)
    assert clinic.answer(one, 4, 1) == clinic.answer(one, 5, 2) == ["bob: malformed"]
    assert clinic.answer(one, 6, 1) == ["bob: malformed", "bob: unavailable"]
    right(practice, one, 1, rows_of(1))


def test_who_is_often_late_is_waited_for_no_more_for_some_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose parts do not come costs others at most a hundredth of the time."""
    now, waited = [0.0], []

    class Clock:
        perf_counter = staticmethod(program_module.time.perf_counter)

        @staticmethod
        def monotonic() -> float:
            now[0] += 0.5
            return now[0]

    monkeypatch.setattr(program_module, "time", Clock)
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    clinic, practice, rows = Asker("clinic", house), Asker("practice", house), rows_of(1)
    bob = house.queues["bob"]
    receive = bob.receive

    def counting(timeout_s: float) -> Any:
        if timeout_s:
            waited.append(clinic.number)
        return receive(timeout_s)

    monkeypatch.setattr(bob, "receive", counting)

    def late() -> list[Any]:
        return [without("bob", clinic.asks(model, rows))]

    house.serve(*(late() for _ in range(STRIKES)))
    assert waited
    waited.clear()
    # A new session begins anew, but within one a client is not waited for for ever.
    steps = [late() for _ in range(STRIKES)]
    house.serve(*steps, late(), [practice.asks(model, rows)])
    first = len(waited)
    waited.clear()
    house.serve(*(late() for _ in range(STRIKES)))
    assert first == len(waited)
    right(practice, model, 1, rows)
    monkeypatch.setattr(program_module, "STRIKE_S", 0.0)
    waited.clear()
    house.serve(*(late() for _ in range(STRIKES + 1)))
    assert len(waited) > first


def test_nobody_waits_for_a_client_that_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    clinic = Asker("clinic", house)
    house.gone.add(clinic.visit)
    receive = house.queues["bob"].receive

    def at_once(timeout_s: float) -> Any:
        assert not timeout_s
        return receive(timeout_s)

    monkeypatch.setattr(house.queues["bob"], "receive", at_once)
    house.serve([without("bob", clinic.asks(model, rows_of(1)))])
    assert clinic.answer(model, 1, 1) == ["bob: unavailable"]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_no_time(monkeypatch)

    class Spent(NoDesk):
        def __init__(self, most: int) -> None:
            self.most = most

        def take(self, client: str, model: Offered, rows: int, name: bytes) -> None:
            if rows > self.most:
                raise QueryRefusedError("spent", "quota")
            self.most -= rows

        def left(self, client: str, model: Offered) -> int:
            return self.most

    job = job_of(tmp_path)
    house = house_of(job, job_of(tmp_path / "other", text=CLASSES, clients=("practice",)))
    one, other = house.models
    clinic, practice, rows = Asker("clinic", house), Asker("practice", house), rows_of(1)
    house.desks = {"ann": Spent(3), "bob": Spent(2)}
    house.serve(
        [clinic.asks(Offered(1, one.job, "00" * 32), rows)],
        [clinic.asks(other, rows)],
        *([practice.asks(one, rows)] for _ in range(4)),
        [practice.asks(one, rows_of(2))],
    )
    assert set(clinic.answer(one, 1, 1)) == {"ann: unknown-model", "bob: unknown-model"}
    assert clinic.answer(one, 2, 1) == ["ann: not-allowed"]
    for number in (1, 2):
        right(practice, one, number, rows)
    # The count of each evaluator holds, the following ones' as well.
    assert practice.answer(one, 3, 1) == ["bob: quota, 0 left"]
    assert practice.answer(one, 4, 1) == ["ann: quota, 0 left"]
    assert practice.answer(one, 5, 2) == ["ann: quota, 0 left"]


def test_a_client_that_floods_is_told_that_it_is_too_much(tmp_path: Path) -> None:
    """Others' questions are answered, and what waits is bounded at every evaluator."""
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    clinic, practice, rows = Asker("clinic", house), Asker("practice", house), rows_of(16)
    flood = [clinic.asks(model, rows) for _ in range(MOST_WAITING + 5)]
    house.serve([*flood, practice.asks(model, rows)])
    said = [clinic.answer(model, number + 1, 16) for number in range(len(flood))]
    refused = [each for each in said if isinstance(each, list)]
    assert refused == [["ann: busy"]] * 5
    right(clinic, model, 1, rows)
    right(practice, model, 1, rows)


@pytest.mark.parametrize(("leaves", "most"), [(True, MOST_WAITING), (False, MOST_HELD)])
def test_half_questions_take_bounded_room(tmp_path: Path, leaves: bool, most: int) -> None:
    """Only to one evaluator, by a client that comes again and again, and leaves or not."""
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    practice, rows = Asker("practice", house), rows_of(1)
    steps: list[list[Any]] = []
    for visit in range(100):
        clinic = Asker("clinic", house, visit.to_bytes(16, "big"))
        half = [without("ann", clinic.asks(model, rows)) for _ in range(20)]
        steps.append([*half, practice.asks(model, rows)])
        if leaves:
            house.gone.add(clinic.visit)
    house.serve(*steps)
    assert house.reports["bob"]["waiting"] <= most + 20
    right(practice, model, 100, rows)


def test_a_client_that_shakes_hands_again_with_old_questions_waiting(tmp_path: Path) -> None:
    """Its numbers begin anew under new keys: no keystream twice, and the service goes on."""
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    old, rows = Asker("clinic", house), rows_of(1)
    old.number = 10
    new = Asker("clinic", house)
    new.keys = {name: type(key)(bytes(3), "again", name) for name, key in old.keys.items()}
    house.serve([old.asks(model, rows), new.asks(model, rows)], [new.asks(model, rows)])
    for asker, number in ((old, 11), (new, 1), (new, 2)):
        right(asker, model, number, rows)
    assert house.used_twice() == 0


def test_accounts_are_written_when_questions_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the evaluators that only follow, who hear of nothing but batches."""
    monkeypatch.setattr(program_module, "REST_S", 0.0)
    job = job_of(tmp_path, 3)
    house = house_of(job)
    (model,) = house.models

    class Idle(NoDesk):
        noted = 0
        written = 0

        def answered(self, client: str, model: str, rows: int, name: bytes) -> None:
            self.noted += 1

        def idle(self) -> None:
            self.written = self.noted

    desks = {name: Idle() for name in house.names}
    house.desks = dict(desks)
    house.serve([Asker("clinic", house).asks(model, rows_of(1))], [], [])
    assert [(desk.noted, desk.written) for desk in desks.values()] == [(1, 1)] * 3


def test_rounds_and_bytes_of_one_row(tmp_path: Path) -> None:
    """What a question costs between evaluators; the dealer's material was there before."""
    house = house_of(job_of(tmp_path, text=CLASSES))
    (model,) = house.models
    clinic = Asker("clinic", house)
    house.serve([clinic.asks(model, rows_of(1))])
    before, after = house.marks
    sent = house.net.transcript["ann", "bob"][before["ann", "bob"] : after["ann", "bob"]]
    (announced, _), *exchanges = sent
    assert announced == messages.BATCH
    assert {label[:4] for label, _ in exchanges} == {b"open"}
    assert [len(payload) for _, payload in exchanges] == [16, 40, 24, 8, 8, 40, 24, 8, 24]
    ordered = house.net.transcript["ann", "registry"][before["ann", "registry"] :]
    assert all(label == messages.ORDER for label, _ in ordered)


def test_every_node_notes_what_it_served_and_how_that_ended(tmp_path: Path) -> None:
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    clinic = Asker("clinic", house)
    house.serve([clinic.asks(model, rows_of(1)), clinic.asks(model, rows_of(3))])
    assert set(house.log) == {*house.names, "registry"}
    for name, entries in house.log.items():
        (started, said), (ended, served) = entries
        assert (started, ended) == (Kind.SERVICE_STARTED, Kind.SERVICE_ENDED)
        assert said["models"] == served["models"] == (model.digest,)
        assert said["clients"] == house.agreed.roles.clients
        assert served["by"] == name
        assert served["code"] in ("peer-lost", "internal")  # who waited when nobody went on
        if name == "registry":
            assert served["units"] > 0
        else:
            assert (served["questions"], served["rows"], served["refused"]) == (2, 17, 0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), ("ann", "stopped")),
        (AbortedError("interrupted", "bob"), ("bob", "interrupted")),
        (PeerLostError("gone"), ("ann", "peer-lost")),
        (RuntimeError("a fault"), ("ann", "internal")),
    ],
    ids=str,
)
def test_a_clean_end_is_told_from_others(error: BaseException, said: tuple[str, str]) -> None:
    assert ending(error, "ann") == said
    if isinstance(error, Exception):
        stopped = InterruptedRunError("stopped")
        stopped.__cause__ = error
        assert ending(stopped, "ann") == said


class Counting(ServiceDesk):
    """A desk with a real count, whose journal goes nowhere."""

    def __init__(self, folder: Path) -> None:
        self.counts = Allowance(folder / "counts.json")
        journal, record = Journal(lambda kind, fields: None), Record(folder / "drift.json")
        super().__init__("ann", self.counts, journal, record)

    @property
    def spent(self) -> int:
        return sum(self.counts._spent.values())


def test_a_repeated_question_counts_once_and_gets_the_same_answer(tmp_path: Path) -> None:
    """Also if it asks about other rows: the answer is that to the first ones."""
    house = house_of(job_of(tmp_path, answer="number"))
    (model,) = house.models
    for name in house.names:
        (tmp_path / name).mkdir()
    desks = {name: Counting(tmp_path / name) for name in house.names}
    house.desks = dict(desks)
    clinic, practice = Asker("clinic", house), Asker("practice", house)
    rows, once = rows_of(1), b"n" * 16
    later = Asker("clinic", house, visit=b"2" * 16)
    house.serve(
        [clinic.asks(model, rows, once)],
        [later.asks(model, rows_of(1, 8), once)],
        [practice.asks(model, rows_of(1, 8), once)],
        [later.asks(model, rows_of(2, 8), once)],
    )
    right(clinic, model, 1, rows)
    right(later, model, 1, rows)
    right(practice, model, 1, rows_of(1, 8))  # another client's name is another question's
    right(later, model, 2, rows_of(2, 8))
    assert {desk.spent for desk in desks.values()} == {1 + 1 + 16}
    assert house.used_twice() == 0
    assert house.reports["ann"]["batches"] == 3


def test_a_client_hears_how_many_rows_are_left(tmp_path: Path) -> None:
    """From the first evaluator, of models that it may ask; nothing is counted or computed for it,
    and what says so is as long as any refusal."""
    house = house_of(
        job_of(tmp_path, rows_a_day=20),
        job_of(tmp_path / "other", text=CLASSES, clients=("practice",)),
    )
    one, other = house.models
    for name in house.names:
        (tmp_path / name).mkdir()
    desks = {name: Counting(tmp_path / name) for name in house.names}
    house.desks = dict(desks)
    clinic, rows = Asker("clinic", house), rows_of(2)

    def asks(model: Offered, name: str = "ann") -> Any:
        clinic.number += 1
        return clinic.sends({name: messages.left_question(model.digest)})

    house.serve(
        [asks(one)],
        [clinic.asks(one, rows), asks(one)],
        [clinic.asks(one, rows)],
        [asks(other), asks(one, "bob"), clinic.asks(one, rows_of(1))],
    )

    def said(number: int, name: str = "ann") -> Any:
        (data,) = house.queues[name].answers[clinic.visit, number]
        assert len(data) == len(messages.refusal_of("busy"))
        return messages.left_from(name, memoryview(data))

    assert (said(1), said(3)) == (20, 4)
    assert said(4) == messages.Refused("quota", 4) and said(5).code == "not-allowed"
    assert clinic.answer(one, 4, 2) == ["ann: quota, 4 left"]
    right(clinic, one, 2, rows)
    right(clinic, one, 7, rows_of(1))
    assert {desk.spent for desk in desks.values()} == {16 + 1}
    assert house.reports["ann"]["batches"] == 2


def test_a_repetition_that_others_answered_in_another_unit_is_refused(tmp_path: Path) -> None:
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    last = house.names[-1]
    forgetful = house.answers[last] = Answers()
    clinic, rows, name = Asker("clinic", house), rows_of(1), b"n" * 16
    house.serve([clinic.asks(model, rows, name)])
    ((mine, kept),) = forgetful._kept["clinic"].items()
    forgetful._kept["clinic"][mine] = Kept(kept.model, b"another", kept.words)
    house.seed += 1
    house.serve([clinic.asks(model, rows, name)])
    assert clinic.answer(model, 2, 1) == [f"{last}: unavailable"]


def test_units_of_two_sessions_have_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first unit of a session is not that of another: one evaluator has its summand of the one,
    and another of the other."""
    in_no_time(monkeypatch)
    only_units_of(1, monkeypatch)
    house = house_of(job_of(tmp_path))
    (model,), clinic, rows, name = house.models, Asker("clinic", house), rows_of(1), b"n" * 16
    house.serve([clinic.asks(model, rows, name)])
    right(clinic, model, 1, rows)
    house.answers["ann"] = Answers()  # as after a restart
    house.seed += 1
    house.serve([without("bob", clinic.asks(model, rows, name))], [clinic.asks(model, rows, name)])
    assert clinic.answer(model, 3, 1) == ["bob: unavailable"]


def test_nothing_is_answered_that_could_not_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_units_of(1, monkeypatch)

    class Full(NoDesk):
        def answered(self, client: str, model: str, rows: int, name: bytes) -> None:
            raise AuditError("the disk is full")

    house = house_of(job_of(tmp_path))
    house.desks["ann"] = Full()
    with pytest.raises(AuditError):
        house.serve([Asker("clinic", house).asks(house.models[0], rows_of(1))])
    assert not house.queues["ann"].answers


def test_the_newest_answers_of_each_client_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many, so many words, and each for its own question: a name alone is none."""
    monkeypatch.setattr(desk_module, "MOST_KEPT", 3)
    monkeypatch.setattr(desk_module, "MOST_KEPT_WORDS", 100)
    kept = {rows: Kept("risk", b"unit", np.zeros((rows, 1), np.int64)) for rows in (1, 16, 99)}
    answers = Answers()

    def there(client: str = "clinic") -> list[bytes]:
        return [name for name in (b"1", b"2", b"3", b"4") if answers.find(client, name, "risk", 1)]

    for name in (b"1", b"2", b"3", b"1"):
        answers.keep("clinic", name, kept[1])
    answers.keep("practice", b"1", kept[16])
    answers.keep("clinic", b"4", kept[1])
    assert there() == [b"1", b"3", b"4"] and there("practice") == there("other") == []
    assert answers.find("practice", b"1", "risk", 16) is kept[16]
    assert answers.find("practice", b"1", "dose", 16) is None
    answers.keep("clinic", b"2", kept[99])
    assert there() == [b"4"] and answers.find("clinic", b"2", "risk", 99) is kept[99]


def test_a_question_that_waits_is_replaced_by_its_repetition(tmp_path: Path) -> None:
    house = house_of(job_of(tmp_path))
    (model,) = house.models
    for name in house.names:
        (tmp_path / name).mkdir()
    desks = {name: Counting(tmp_path / name) for name in house.names}
    house.desks = dict(desks)
    clinic, later, rows = Asker("clinic", house), Asker("clinic", house, b"2" * 16), rows_of(1)
    house.serve([clinic.asks(model, rows, b"n" * 16), later.asks(model, rows, b"n" * 16)])
    right(later, model, 1, rows)
    assert not house.queues["ann"].answers[clinic.visit, 1]
    assert {desk.spent for desk in desks.values()} == {1}
    house.serve([clinic.asks(model, rows, b"m" * 16)])
    assert {desk.spent for desk in desks.values()} == {2}
