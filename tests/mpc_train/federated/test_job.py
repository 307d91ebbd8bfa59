"""Federated jobs: what is refused, and by which words; a node's rules; a module that differs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpc_train.admission.cautions import cautions
from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.admission.plain_module import own_module
from mpc_train.admission.rules import Rules, check_rules, check_table_rows
from mpc_train.commands.job import node_that_allows
from mpc_train.errors import ConfigError, DataError, JobError, ModelError, RefusedError
from mpc_train.federated.local import Owner
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import words_of
from mpc_train.results.report import beware, describe
from tests.support.federated import PRIVACY, federated_job, job_text, tables_of
from tests.support.node_files import party_toml


def test_a_job_is_carried_and_described(tmp_path: Path) -> None:
    job = federated_job(tmp_path)
    assert job_from_bytes(job.to_bytes()) == job
    assert job.nodes == ("ann", "bob", "registry") and job.visitors == ("cas", "dan")
    text = "\n".join([describe(job), *beware(job)])
    for said in ("3 rounds of FedAvg", "federated_net:network", "cas, dan come and go", "beware"):
        assert said in text
    assert words_of(job, "disclosures") == ["federated"] and words_of(job, "recipients") == []


def test_an_owner_without_a_node_asks_its_rules_before_the_run(tmp_path: Path) -> None:
    """`job check --config` said that it is not a node of the job."""
    job, config = federated_job(tmp_path), tmp_path / "party.toml"

    def asks(name: str, **lists: list[str]) -> str:
        more = {"disclosures": ["federated"], "modules": [job.model.module], **lists}
        rules = "\n".join(f"{key} = {words!r}" for key, words in more.items())
        config.write_text(party_toml(name, recipients=[], metrics=[], rules=rules))
        return node_that_allows(config, job).place.name

    assert asks("dan") == "dan"
    with pytest.raises(RefusedError, match="disclosures"):
        asks("dan", disclosures=[])
    with pytest.raises(ConfigError, match=r"zoe is not a node .*, and cas, dan train without one"):
        asks("zoe")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rounds = 3", "rounds = 0", "train.federated.rounds: 1 to"),
        ("rounds = 3\n", "", "rounds"),
        ("clip = 4", "clip = 0", "train.federated.clip: from 2"),
        ("clip = 4", "clip = 4\nleast_owners = 1", "least_owners: 2 to 4"),
        ("clip = 4", "clip = 4\nleast_owners = 5", "least_owners: 2 to 4"),
        ("clip = 4", "clip = 4\nproximal = 1", "proximal: above 0 for fedprox"),
        ("clip = 4", 'clip = 4\nrule = "fedprox"', "proximal: above 0 for fedprox"),
        ("clip = 4", "clip = 4\nepsilon = 0.1", "epsilon: only fedadam"),
        ("clip = 4", 'clip = 4\noptimizer = "adam"\nmomentum = 0.9', "momentum: only with"),
        ("seed = 3", "seed = 3\nepochs = 2", "train.epochs: not with mode"),
        ('mode = "federated"\n', "", "train.federated: only with mode"),
        ("[train]", "[reveal]\nmetrics = ['auc']\n[train]", "reveal: a federated job reveals"),
        (
            "[train]",
            "[privacy]\nepsilon = 1\ndelta = 1e-5\nneighbours = 'zeroed'\n[train]",
            'privacy.unit: write "owner": after local steps nothing bounds what one row changes',
        ),
        ("[train]", f"{PRIVACY}clip = 1\n[train]", "privacy.clip: train.federated.clip is"),
        ("[train]", f"{PRIVACY}most_rows = 9\n[train]", "privacy.most_rows: an owner has all"),
        ("[train]", PRIVACY.replace("8", "21") + "[train]", "privacy.epsilon: between"),
        (
            '[train]\nmode = "federated"\nseed = 3\n[train.federated]',
            PRIVACY + '[train]\nmode = "federated"\n[train.federated]\nsizes = "secret"',
            "train.federated.sizes: with .privacy.: sizes: owners see how many rows a round has",
        ),
        (
            "[train]",
            PRIVACY.replace("0.00001", "1e-12").replace("8", "20") + "[train]",
            "privacy.delta: too small for this ε and so many",
        ),
        ("[train]", "[fixed_point]\nfraction_bits = 22\n[train]", "fixed_point: the scale"),
        ('module = "federated_net:network"', 'module = "federated_net:none"', "model.module"),
        ('module = "federated_net:network"', 'module = "builtins:dict"', "belongs to Python"),
        ('kind = "logistic"', 'kind = "mlp"\nhidden = [3]', "model.kind: linear, logistic"),
        ('kind = "logistic"', 'kind = "softmax"', "model.classes: write classes"),
        ('dealer = "registry"', 'dealer = "registry"\nrecipients = ["ann"]', "all owners get"),
        ("cas = 30", "cas = 0", "cas"),
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path, text = tmp_path / "job.toml", job_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(JobError, match=said):
        load_job(path)


def test_a_module_that_differs_is_refused(tmp_path: Path) -> None:
    job = federated_job(tmp_path)

    def agreed(**says: object) -> Job:
        plain = msgspec.structs.replace(job.plain, **says)
        model = msgspec.structs.replace(job.model, plain=plain)
        return msgspec.structs.replace(job, model=model)

    own_module(job)
    for says, said in (
        ({"source": "0" * 64}, "source of federated_net:network here differs"),
        ({"tensors": job.plain.tensors[1:]}, "makes a different module here"),
        ({"initial": "0" * 64}, "other weights here under the same seed"),
    ):
        with pytest.raises(ModelError, match=said):
            own_module(agreed(**says))


def test_a_factory_that_is_not_listed_is_not_called(tmp_path: Path) -> None:
    """An owner has the job's file from somebody else; any installed function has a name."""
    path = tmp_path / "job.toml"
    path.write_text(job_text().replace("federated_net:network", "builtins:breakpoint"))
    with pytest.raises(RefusedError, match="builtins:breakpoint would be called but is not listed"):
        load_job(path, ("federated_net:network",))
    path.write_text(job_text())
    load_job(path, ("federated_net:network",))


def test_an_owner_of_few_rows_is_not_hidden_by_their_secret_number(tmp_path: Path) -> None:
    rules = Rules((), (), ())
    public = federated_job(tmp_path)
    check_table_rows(rules, public, "cas", 1)  # `check_rules` knows
    secret = federated_job(tmp_path, sizes='"secret"')
    check_table_rows(rules, secret, "cas", 12)
    with pytest.raises(RefusedError, match="would train on 9 rows of its own"):
        check_table_rows(rules, secret, "cas", 11)
    check_table_rows(Rules((), (), (), least_effective_rows=0), secret, "cas", 1)


def test_rules_must_allow_that_owners_see_each_model(tmp_path: Path) -> None:
    job = federated_job(tmp_path, least_owners="3")
    rules = Rules(
        (),
        ("registry",),
        ("ann", "bob"),
        disclosures=("federated",),
        modules=("federated_net:network",),
        least_parties=3,
    )
    check_rules(rules, job, "cas")
    for key, value, said in (
        ("disclosures", (), "federated would be disclosed"),
        ("modules", (), "federated_net:network would be called"),
        ("least_parties", 4, "opened with 3 owners"),
        ("least_effective_rows", 50, "would train on"),
        ("evaluators", ("ann",), "bob would compute"),
    ):
        with pytest.raises(RefusedError, match=said):
            check_rules(msgspec.structs.replace(rules, **{key: value}), job, "cas")


def test_rules_must_allow_that_owners_learn_the_sum_of_secret_sizes(tmp_path: Path) -> None:
    """By which the number of an owner that drops out is the difference of two rounds."""
    weighted = federated_job(tmp_path, sizes='"secret"')
    equal = federated_job(tmp_path, sizes='"secret"', weighting='"equal"')
    rules = Rules(
        (),
        ("registry",),
        ("ann", "bob"),
        disclosures=("federated",),
        modules=("federated_net:network",),
    )
    check_rules(rules, equal, "cas")
    with pytest.raises(RefusedError, match="sizes would be disclosed"):
        check_rules(rules, weighted, "cas")
    both = msgspec.structs.replace(rules, disclosures=("federated", "sizes"))
    check_rules(both, weighted, "cas")
    assert any("difference of two rounds" in one for one in cautions(weighted))
    assert not any("numbers of rows" in one for one in cautions(equal))


def test_a_training_that_diverges_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    job = federated_job(tmp_path)
    table = tables_of(job)["cas"]
    broken = np.array(table.features)
    broken[:] = np.nan
    owner = Owner(job, "cas", type(table)(broken, table.labels), "cpu")
    with pytest.raises(DataError, match="of the update of cas in round 1 is not finite"):
        owner.train(owner.initial(), 1)


def test_with_a_promise_a_training_that_diverges_takes_part_with_zeros(tmp_path: Path) -> None:
    """Who takes part is the same in both tables that the promise compares."""
    pytest.importorskip("dp_accounting")
    job = federated_job(tmp_path, privacy=PRIVACY)
    table = tables_of(job)["cas"]
    broken = np.full_like(table.features, np.nan)
    owner = Owner(job, "cas", type(table)(broken, table.labels), "cpu")
    update = owner.train(owner.initial(), 1)
    assert not update.words.any() and update.words.size == owner.limits.size
    assert update.factor == 0
