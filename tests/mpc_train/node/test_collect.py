"""What becomes of the nodes' summaries and envelopes, and how it is shown."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given as each
from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mpc_train.admission.load import load_job
from mpc_train.commands.common import Format
from mpc_train.commands.nodes import Events
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job
from mpc_train.node.collect import bundle, found_by, summarise
from mpc_train.results.report import duration, outcome, size
from mpc_train.run.progress import ProgressView
from protocols.sealing.bundle import unpack_bundle
from protocols.sealing.envelope import read_info
from tests.mpc_train.results.test_artifact import METRICS, NODES, Run, opened
from tests.support.jobs import write_job
from tests.support.provenance import insecure_record

with TemporaryDirectory() as _folder:
    BOB_S_JOB = load_job(write_job(Path(_folder)))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return load_job(write_job(tmp_path))


def summaries(job: Job) -> dict[str, dict[str, Any]]:
    one = {
        "steps": 16,
        "train_seconds": 2.0,
        "step_seconds_median": 0.125,
        "bytes_sent": 1500,
        "rounds": 90,
    }
    return {name: dict(one) for name in job.nodes}


def printed(job: Job) -> dict[str, dict[str, Any]]:
    one = {
        "metrics": {"accuracy": 0.9, "auc": None, "calibration": [[0.25, 0.5], None]},
        "unavailable": {"auc": "refused: a class has 3 rows", "calibration": "bin 2: empty"},
        "losses": {},
        "revealed": ["accuracy", "auc"],
        "joined_rows": None,
    }
    return {name: dict(one) for name in job.nodes}


def sealed(root: Path, run: Run, senders: Iterable[str], recipients: Iterable[str]) -> list[Path]:
    """Envelopes as the nodes of a run left them."""
    found = []
    for recipient in recipients:
        for sender in senders:
            found.append(left(root, recipient, sender, run.seal(sender, recipient)))
    return found


def left(root: Path, recipient: str, sender: str, content: bytes, name: str = "") -> Path:
    path = root / "sealed" / recipient / sender / (name or "model.envelope")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_envelopes_become_one_file_a_recipient(tmp_path: Path, job: Job) -> None:
    run = Run(job)
    files = sealed(tmp_path, run, ("cleo", "bob", "ann"), ("ann", "office"))
    said = insecure_record(job, files)
    bundles = bundle(tmp_path, files, job.recipients, job.evaluators, NODES, said)
    assert bundles == {name: tmp_path / f"{name}.sealed" for name in ("ann", "office")}
    record, inside = unpack_bundle(bundles["office"].read_bytes())
    assert record == said
    assert [read_info(each).sender for each in inside] == ["ann", "bob", "cleo"]
    assert opened(inside).metrics == METRICS
    # Nothing is kept twice: the envelopes and their directories are gone.
    assert {*tmp_path.iterdir()} == {tmp_path / "job.toml", *bundles.values()}


def test_who_receives_nothing_keeps_what_came(tmp_path: Path, job: Job) -> None:
    files = sealed(tmp_path, Run(job), ("ann", "bob", "cleo"), ("ann",))
    assert bundle(tmp_path, files, [], job.evaluators, NODES, insecure_record(job, files)) == {}
    assert all(path.exists() for path in files)


def test_a_recipient_who_lacks_an_envelope_is_named(tmp_path: Path, job: Job) -> None:
    files = sealed(tmp_path, Run(job), ["bob"], ["office"])
    with pytest.raises(ArtifactError, match="no envelope of ann, cleo for office arrived"):
        bundle(
            tmp_path, files, ["office"], ["ann", "bob", "cleo"], NODES, insecure_record(job, files)
        )
    with pytest.raises(ArtifactError, match="no envelope of bob for ann arrived"):
        bundle(tmp_path, files, ["office", "ann"], ["bob"], NODES, insecure_record(job, files))
    assert not list(tmp_path.glob("*.sealed"))
    assert all(path.exists() for path in files)


def test_what_others_sealed_is_left_aside(tmp_path: Path, job: Job) -> None:
    """Non-evaluators, strangers, other names and other kinds: a bundle holds none of it."""
    files = sealed(tmp_path, Run(job), job.evaluators, job.recipients)
    for sender in ("registry", "mallory", "office"):
        files.append(left(tmp_path, "office", sender, b"garbage"))
    files.append(left(tmp_path, "office", "ann", b"garbage", "other.envelope"))
    files.append(left(tmp_path, "mallory", "ann", b"garbage"))
    other = tmp_path / "public" / "ann" / "notes"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")
    bundles = bundle(
        tmp_path,
        [*files, other],
        job.recipients,
        job.evaluators,
        NODES,
        insecure_record(job, files),
    )
    assert set(bundles) == {"ann", "office"}
    assert len(unpack_bundle(bundles["office"].read_bytes()).envelopes) == 3


@pytest.mark.parametrize(
    "content", ["nothing", "garbage", "cut", "flipped", "to another", "forged"]
)
def test_an_evaluator_that_sealed_something_else_is_named(
    tmp_path: Path, job: Job, content: str
) -> None:
    run = Run(job)
    files = sealed(tmp_path, run, job.evaluators, job.recipients)
    good = run.seal("bob", "office")
    bad = {
        "nothing": b"",
        "garbage": bytes(range(256)) * 40,
        "cut": good[:-1],
        "flipped": good[:-5000] + bytes([good[-5000] ^ 1]) + good[-4999:],
        "to another": run.seal("bob", "ann"),
        "forged": run.seal("bob", "office", signer=NODES["mallory"]),
    }[content]
    left(tmp_path, "office", "bob", bad)
    with pytest.raises(
        ArtifactError, match="what bob sealed to office is not a result of this run"
    ):
        bundle(tmp_path, files, job.recipients, job.evaluators, NODES, insecure_record(job, files))
    assert not list(tmp_path.glob("*.sealed"))


@pytest.mark.parametrize(
    ("made", "word", "says"),
    [
        ("refreshed", "refreshed", "Refreshed ann, bob, cleo have new shares of the model"),
        ("shares", "kept", "Kept      ann, bob, cleo have shares of the model that was brought"),
        ("none", "measured", "Measured  the model in shares of ann, bob, cleo"),
    ],
)
def test_a_run_that_trains_nothing_does_not_say_that_it_trained(
    job: Job, made: Any, word: str, says: str
) -> None:
    settings = {"train": replace(job.train, epochs=0), "reveal": replace(job.reveal, model=made)}
    given = {name: {**one, "steps": 0} for name, one in summaries(job).items()}
    result = summarise(replace(job, **settings), given)
    assert result["instead"] == word
    assert outcome(result).startswith(says) and "Trained" not in outcome(result)
    assert "instead" not in summarise(job, summaries(job))


def test_envelopes_of_two_sessions_are_no_result(tmp_path: Path, job: Job) -> None:
    files = sealed(tmp_path, Run(job), ("ann", "cleo"), job.recipients)
    files += sealed(tmp_path, Run(job, sid=bytes(32)), ["bob"], job.recipients)
    with pytest.raises(ArtifactError, match="different sessions"):
        bundle(tmp_path, files, job.recipients, job.evaluators, NODES, insecure_record(job, files))


def test_an_envelope_that_was_not_signed_by_all_is_no_result(tmp_path: Path, job: Job) -> None:
    run = Run(job)
    files = sealed(tmp_path, run, job.evaluators, job.recipients)
    said = insecure_record(job, files)
    left(tmp_path, "office", "bob", run.seal("bob", "office"))
    with pytest.raises(ArtifactError, match="bob for office is not the one that all nodes signed"):
        bundle(tmp_path, files, job.recipients, job.evaluators, NODES, said)
    assert not list(tmp_path.glob("*.sealed"))


def test_summaries_become_one_report(job: Job) -> None:
    given = summaries(job)
    given["bob"]["train_seconds"] = 3.0
    result = summarise(job, given)
    assert not {"metrics", "losses", "learnt"} & set(result)
    result |= found_by(job, printed(job))
    assert result["status"] == "ok"
    assert (result["parties"], result["train_seconds"]) == (3, 3.0)
    assert result["bytes_sent"] == dict.fromkeys(("ann", "bob", "cleo", "registry"), 1500)
    text = outcome({**result, "model": "m", "sealed": ["s"], "twin_metrics": {"accuracy": 0.91}})
    assert "accuracy 0.9000   (same training in the clear: 0.9100)" in text
    assert "Metric    auc refused: a class has 3 rows\n" in text
    assert "calibration [[0.2500, 0.5000], none]; bin 2: empty\n" in text
    assert "registry 1.5 kB" in text


@pytest.mark.parametrize("key", ["steps", "metrics", "losses", "revealed", "joined_rows"])
def test_evaluators_who_disagree_are_not_believed(job: Job, key: str) -> None:
    given = summaries(job) if key == "steps" else printed(job)
    given["cleo"][key] = 7
    with pytest.raises(ArtifactError, match=f"cleo and ann report different {key}"):
        (summarise if key == "steps" else found_by)(job, given)


def as_(key: str, *values: Any) -> list[tuple[str, Any]]:
    return [(key, value) for value in values]


HOSTILE: list[tuple[str, Any]] = [
    *as_("steps", *(-1, 17, 10**30, 1.5, "16", None, [16], True)),
    *as_("train_seconds", *(-0.1, "2", 1e300, None, {})),
    *as_("step_seconds_median", *("fast", [0.1])),
    *as_("rounds", *(-1, 10**40, "\x1b[31m90")),
    *as_("bytes_sent", *(-1, 10**40, "1500", {"ann": 1500})),
    *as_("peak_rss_mb", *(-1, "much", [1])),
    ("metrics", 7),
    ("metrics", {"accuracy": "0.9"}),
    ("metrics", {"accuracy": True}),
    ("metrics", {"accuracy": 1e300}),
    ("metrics", {"accuracy": {"value": 0.9}}),
    ("metrics", {"accuracy": [[[[0.9]]]]}),
    ("metrics", {"accuracy": [0.9] * 20_000}),
    ("metrics", {"salary": 0.9}),
    ("metrics", {"accuracy\nMetric auc": 0.9}),
    ("losses", {"1": "small"}),
    ("losses", {"17": 0.1}),
    ("losses", {"0": 0.1}),
    ("losses", {"one": 0.1}),
    ("losses", {"１": 0.1}),
    ("losses", [0.1]),
    ("revealed", "accuracy"),
    ("revealed", [1]),
    ("revealed", ["accuracy@mallory"]),
    ("revealed", ["everything"]),
    ("revealed", ["accuracy"] * 200_000),
    ("joined_rows", 5),
    ("joined_rows", -5),
    ("joined_rows", "many"),
    ("status", "ok"),
    ("\x1b[31m", 1),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE, ids=lambda part: str(part)[:40])
@pytest.mark.parametrize("name", ["bob", "registry"])
def test_a_summary_that_cannot_be_is_refused_by_name(
    job: Job, name: str, key: str, value: Any
) -> None:
    given = summaries(job)
    given[name][key] = value
    with pytest.raises(ArtifactError, match=f"the summary of {name} "):
        summarise(job, given)


@settings(deadline=None)
@each(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=20,
    ),
    st.sampled_from(
        ("steps", "train_seconds", "rounds", "bytes_sent", "metrics", "losses", "revealed", "x")
    ),
)
def test_whatever_a_node_sends_is_read_or_refused_by_name(value: Any, key: str) -> None:
    given = summaries(BOB_S_JOB)
    given["bob"][key] = value
    try:
        result = summarise(BOB_S_JOB, given)
    except ArtifactError as error:
        assert "bob" in str(error)
    else:
        json.dumps(result, allow_nan=False)
        outcome(result)


def test_a_resumed_run_says_what_its_numbers_are_of(job: Job) -> None:
    given = summaries(job)
    assert "resumed_after" not in summarise(job, given) and "Resumed" not in outcome(
        summarise(job, given)
    )
    for name in job.evaluators:
        given[name]["resumed_after"] = 10
    result = summarise(job, given)
    lines = outcome(result).splitlines()
    assert f"{result['steps'] - 10} steps" in lines[0]
    assert f"after step 10 of {result['steps']}" in lines[1]


def test_sizes_and_times_read_well() -> None:
    assert [size(count) for count in (0, 999, 1000, 2_500_000, 3e9, 4e12)] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 GB", "4.0 TB",
    ]  # fmt: skip
    assert [duration(time) for time in (0.04, 9.5, 12, 59.4, 61, 3599, 3600, 7500)] == [
        "0.0 s", "9.5 s", "12 s", "59 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView()
    with view.shown():
        view.event("arrived", {"node": "bob"})
        view.event("started", {})
        view.event("progress", {"node": "bob", "fields": {"step": 1, "steps": 4}})
    with ProgressView(enabled=False).shown() as silent:
        silent.event("arrived", {"node": "cleo"})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "bob has joined\nall nodes are connected to each other; training\n"
    fields = {"step": 4, "steps": 4, "bytes_sent": 1500}
    view.event("progress", {"node": "bob", "fields": fields})
    assert re.fullmatch(
        r"training 4/4  [0-9.]+ steps/s  0.0 s left  1.5 kB sent\n", capsys.readouterr().err
    )


def test_progress_for_machines_skips_some_but_never_the_last_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = Events(Format.json)
    for step in range(1, 51):
        events("progress", {"node": "bob", "fields": {"step": step, "steps": 50}})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = [line["fields"]["step"] for line in lines]
    assert shown[-1] == 50
    assert len(shown) < 10
