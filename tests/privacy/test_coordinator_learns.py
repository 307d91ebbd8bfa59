"""What passes through the coordinator: progress, sizes and times, and not a metric."""

import json
from collections.abc import Iterator

from mpc_train.admission.load import load_job
from mpc_train.results.outcome import check, read_outcome
from parties.agreement import control
from tests.support.study import NODES, Study

SUMMARY = {
    "steps",
    "train_seconds",
    "step_seconds_median",
    "rounds",
    "bytes_sent",
    "peak_rss_mb",
}
PROGRESS = {"step", "steps", "rows", "of_rows", "records", "bytes_sent", "phase", "fold", "folds"}
PROGRESS |= {"rounds"}


def told(study: Study, name: str) -> Iterator[bytes]:
    """Everything that a node said to the coordinator."""
    body = (study.secrets / f"{name}.words.told").read_bytes()
    while body:
        length = int.from_bytes(body[:4], "big")
        yield body[4 : 4 + length]
        body = body[4 + length :]


def test_what_nodes_tell_the_coordinator_has_no_metric(good_study: Study) -> None:
    metrics = good_study.good["ann"].record["metrics"]
    assert metrics.keys() == {"accuracy"} and metrics == good_study.good["bob"].record["metrics"]
    for name in NODES:
        messages = [control.decode_from_node(said, name) for said in told(good_study, name)]
        (done,) = [message for message in messages if isinstance(message, control.Done)]
        assert set(json.loads(done.summary)) <= SUMMARY
        for message in messages:
            if isinstance(message, control.Progress):
                assert set(message.fields) <= PROGRESS
        text = b"".join(told(good_study, name))
        for value in metrics.values():
            assert repr(value).encode() not in text
        # What was opened to whom is in the job that the coordinator proposed; no value is with it.
        check(load_job(good_study.job), read_outcome(done.outcome))
        rest = text.replace(done.outcome, b"")
        assert b"accuracy" not in rest and b"metric" not in rest and b"loss" not in rest


def test_what_a_coordinator_prints_and_keeps_has_no_metric(good_study: Study) -> None:
    record = good_study.good["desk"].record
    assert record["status"] == "ok"
    assert not {"metrics", "losses", "learnt", "revealed", "joined_rows"} & set(record)
    (accuracy,) = good_study.good["ann"].record["metrics"].values()
    assert repr(accuracy) not in json.dumps(record)
    for path in good_study.left.glob("desk*"):
        if path.is_file():
            assert repr(accuracy) not in path.read_text() and '"metrics"' not in path.read_text()


def test_recipients_and_nodes_still_learn_what_the_job_lists(good_study: Study) -> None:
    for name in ("ann", "bob"):
        assert "accuracy" in good_study.good[name].record["learnt"]
