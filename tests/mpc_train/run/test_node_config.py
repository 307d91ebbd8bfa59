"""Node files and rules: what is refused, and how clearly."""

from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import ConfigError, DataError, RefusedError
from mpc_train.run.local import LocalNode, local_data, node_text
from mpc_train.run.node_config import load_coordinator_config, load_node_config
from mpc_train.run.place import HOME_VARIABLE, default_home
from tests.support.jobs import replaced, write_job

PARTY = """
[node]
name = "ann"
home = "keys"

[coordinator]
name = "office"
address = "tcp://office.example.org:7700"

[network]
listen = "tcp://0.0.0.0:7701"
advertise = "tcp://ann.example.org:7701"

[data]
study = "ann.csv"
other = { file = "sub/other.csv", ignore = ["id"] }
query = { url = "sqlite:///a.db", query = "select 1", date_formats = { born = "%d.%m.%Y" } }

[rules]
recipients = ["ann", "office"]
dealers = ["registry"]
evaluators = ["ann", "bob", "cleo"]
metrics = ["accuracy", "auc"]
least_parties = 3
least_group = 9

[timeouts]
join_s = 30
"""

COORDINATOR = """
[node]
name = "office"

[network]
listen = "tcp://0.0.0.0:7700"

[run]
job = "job.toml"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_node_config(write(tmp_path, PARTY))
    assert config.place.home == tmp_path / "keys"
    assert config.place.roster == tmp_path / "keys" / "roster"
    assert config.place.run_dir == tmp_path / "runs"
    assert config.source("study").file == str(tmp_path / "ann.csv")
    assert config.source("other").ignore == ("id",)
    assert config.source("query").url == f"sqlite:///{tmp_path}/a.db"
    assert config.source("query").form_of("born").form == "%d.%m.%Y"
    assert (config.listen, config.advertise) == (
        "tcp://0.0.0.0:7701",
        "tcp://ann.example.org:7701",
    )
    assert (config.timeouts.join_s, config.timeouts.peer_s) == (30, 120)
    with pytest.raises(DataError, match="no table for the job 'third'"):
        config.source("third")


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("vault://h/transit/a?ca=../ca+1.pem", "vault://h/transit/a?ca={folder}/../ca+1.pem"),
        ("vault://h/transit/a?ca=/etc/ca%201.pem", "vault://h/transit/a?ca=/etc/ca%201.pem"),
        ("aws-kms:alias/a?region=r&ca=ca.pem", "aws-kms:alias/a?region=r&ca={folder}/ca.pem"),
        (
            "pkcs11:token=t;object=o?module-path=m.so",
            "pkcs11:token=t;object=o?module-path={folder}/m.so",
        ),
        ("file:keys", "file:{folder}/keys"),
    ],
)
def test_paths_in_a_key_s_uri_are_relative_to_the_file(
    uri: str, resolved: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f'{PARTY}\n[vault]\nkey = "{uri}"\n')
    assert load_node_config(path).vault.key.uri == resolved.format(folder=tmp_path)


def test_a_local_run_hands_on_how_tables_are_written(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    (tmp_path / "bob.txt").write_text("")
    (tmp_path / "local.toml").write_text(
        "[data]\n"
        'ann = { url = "sqlite:///ann.db", query = "select \\"a b\\" from t" }\n'
        'bob = { file = "bob.txt", delimiter = ";", header = ["age", "dose", "ill"], quote = "" }\n'
        'cleo = { file = "bob.txt", ignore = ["\\u007f"], date_pivots = { "a b" = 1930 }, '
        'date_formats = { "a b" = "%y%m%d", born = "%d.%m.%Y" }, rename = { "c d" = "dose" }, '
        'drop_rows = ["missing-label"], thousands = "_", skip_lines = 2, comment = "#", '
        "skip_space = true }\n"
    )
    sources = local_data(tmp_path / "job.toml", job)
    assert sources["ann"].url == f"sqlite:///{tmp_path}/ann.db"
    node = LocalNode("bob", "party", tmp_path)
    for owner in job.owners:
        node = LocalNode(owner, "party", tmp_path)
        text = node_text(node, tmp_path / "roster", "office", "tcp://127.0.0.1:1", job, sources)
        assert load_node_config(write(tmp_path, text)).source("study") == sources[owner]
    (tmp_path / "local.toml").write_text('[data]\nann = { file = "a.parquet", quote = "x" }\n')
    with pytest.raises(
        ConfigError, match=r"local\.toml:2: data\.ann\.quote: .* does not have this option"
    ):
        local_data(tmp_path / "job.toml", job)


def test_a_node_that_cannot_be_dialled_leaves_network_out(tmp_path: Path) -> None:
    start, end = PARTY.index("[network]"), PARTY.index("[data]")
    config = load_node_config(write(tmp_path, PARTY[:start] + PARTY[end:]))
    assert config.listen is None
    assert config.advertise is None


def test_a_coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    config = load_coordinator_config(write(tmp_path, COORDINATOR))
    assert config.job == tmp_path / "job.toml"
    assert config.place.home == tmp_path / "home" == default_home()


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ('home = "keys"', 'hom = "keys"', "node.hom", "unknown key"),
        ('name = "ann"', 'name = "Ann"', "node.name", "not a name"),
        ("tcp://office.example.org:7700", "office.example.org", "coordinator.address", "tcp://"),
        ("tcp://office.example.org:7700", "tcp://*:7700", "coordinator.address", "others can dial"),
        ("tcp://office.example.org:7700", "tcp://office:99999", "coordinator.address", "tcp://"),
        ('advertise = "tcp://ann.example.org:7701"\n', "", "network.listen", "advertise"),
        ('listen = "tcp://0.0.0.0:7701"\n', "", "network.advertise", "listen"),
        ('"ann.csv"', '""', "data.study", "data file"),
        ('"ann.csv"', '"ann.data"', "data.study", "cannot be determined from"),
        ('ignore = ["id"]', 'delimiter = "ab"', "data.other.delimiter", "one ASCII character"),
        ('ignore = ["id"]', 'delimeter = ";"', "delimeter", "unknown key"),
        ("sqlite:///a.db", "postgresql://a:b@c/d", "data.query.url", "contains a password"),
        ('recipients = ["ann", "office"]\n', "", "rules", 'write recipients = ["…"]'),
        ('dealers = ["registry"]\n', "", "rules", 'write dealers = ["…"]'),
        ('evaluators = ["ann", "bob", "cleo"]\n', "", "rules", 'write evaluators = ["…"]'),
        ('dealers = ["registry"]', 'dealers = ["The Registry"]', "rules.dealers", "not a name"),
        ("least_group = 9", "least_group = 0", "rules.least_group", "at least 1"),
        ("least_parties = 3", "repeats = 0", "rules.repeats", "at least 1"),
        (
            "least_parties = 3",
            "privacy = { max_epsilon = 0 }",
            "rules.privacy.max_epsilon",
            "above 0",
        ),
        (
            "least_parties = 3",
            "privacy = { budget_epsilon = 3 }",
            "rules.privacy",
            "write both budget_epsilon and budget_delta",
        ),
        (
            "least_parties = 3",
            'privacy = { neighbours = ["added"] }',
            "rules.privacy.neighbours",
            "is not possible here",
        ),
        ("least_parties = 3", "least_batch_rows = -1", "rules.least_batch_rows", "at least 0"),
        ('"auc"]', '"f7"]', "rules.metrics", "is not possible here; write one of"),
        ("least_parties = 3", "least_parties = 0", "rules.least_parties", "at least 1"),
        ("least_parties = 3", 'jobs = ["12"]', "rules.jobs", "64"),
        ("[data]", 'proxy = "http://a:b@proxy:1"\n[data]', "network.proxy", "does not belong here"),
        ("[data]", 'proxy = "proxy:3128"\n[data]', "network.proxy", "with a port"),
        ("[data]", 'proxy = "http://proxy:0"\n[data]', "network.proxy", "with a port"),
        (
            "[data]",
            'proxy_password_file = "x"\n[data]',
            "network.proxy_password_file",
            "needs proxy",
        ),
        ("[data]", 'no_proxy = ["10.0.0.0/40"]\n[data]', "network.no_proxy", "is no network"),
        ("[data]", 'no_proxy = ["a b"]\n[data]', "network.no_proxy", "is no name"),
        ("join_s = 30", "join_s = 0", "timeouts.join_s", "between"),
        ("join_s = 30", "reconnect_s = -1", "timeouts.reconnect_s", "between 0 seconds and 7 days"),
        ("join_s = 30", "reconnect_s = 604801", "timeouts.reconnect_s", "and 7 days"),
        ("join_s = 30", "heartbeat_s = 0", "timeouts.heartbeat_s", "between 1 and 60 seconds"),
        ("join_s = 30", "heartbeat_s = 3", "timeouts.silence_s", "at least twice heartbeat_s"),
        ("join_s = 30", "silence_s = 601", "timeouts.silence_s", "at most 600 seconds"),
        ("join_s = 30", "dial_s = 0", "timeouts.dial_s", "between 1 and 60"),
        ("join_s = 30", "dial_s = 61", "timeouts.dial_s", "between 1 and 60"),
        ('home = "keys"', "rotate_after_days = -1", "node.rotate_after_days", "between 0"),
        ('home = "keys"', "spool_gb = -1", "node.spool_gb", "between 0"),
        ('home = "keys"', "memory_gb = -1", "node.memory_gb", "between 0"),
        ('home = "keys"', "rotate_after_days = 1827", "node.rotate_after_days", "and 1826"),
    ],
)
def test_a_wrong_file_names_file_key_and_remedy(
    tmp_path: Path, old: str, new: str, key: str, says: str
) -> None:
    path = write(tmp_path, replaced(old, new, PARTY))
    with pytest.raises(ConfigError) as caught:
        load_node_config(path)
    assert str(caught.value).startswith(f"{path}:")
    assert key in str(caught.value)
    assert says in str(caught.value)


def test_all_that_is_wrong_in_a_file_is_said_at_once(tmp_path: Path) -> None:
    text = replaced('name = "ann"', 'name = "Ann"', PARTY)
    text = replaced("tcp://office.example.org:7700", "office.example.org", text)
    text = replaced('advertise = "tcp://ann.example.org:7701"\n', "", text)
    text = replaced("least_group = 9", 'least_group = 0\njobs = ["12"]', text)
    text = replaced("join_s = 30", "join_s = 0", text)
    text = replaced('ignore = ["id"]', 'delimiter = "ab", comment = "##", skip_lines = -1', text)
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_node_config(path)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{path}: 9 faults:"
    said = [line.split(": ")[1] for line in rest]
    assert said == [
        "coordinator.address",
        "network.listen",
        "rules.least_group",
        "rules.jobs",
        "timeouts.join_s",
        "data.other.skip_lines",
        "data.other.delimiter",
        "data.other.comment",
        "node.name",
    ]
    assert all(line.strip().startswith(f"{path}:") for line in rest)

    path = write(tmp_path, replaced('listen = "tcp://0.0.0.0:7700"', 'listen = ""', COORDINATOR))
    path.write_text(path.read_text() + "[timeouts]\njoin_s = 0\n")
    with pytest.raises(ConfigError, match=r"2 faults:\n.*network\.listen.*\n.*join_s"):
        load_coordinator_config(path)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('listen = "tcp://0.0.0.0:7700"', 'listen = ""', "network.listen"),
        ("[run]", 'advertise = "tcp://office:7700"\n[run]', "network.advertise"),
        ("[run]", 'proxy = "http://proxy:3128"\n[run]', "network.proxy"),
        ('job = "job.toml"', 'jobs = "job.toml"', "run"),
        ("[network]", "rotate_after_days = 9\n[network]", "node.rotate_after_days"),
        ("[network]", "spool_gb = 9\n[network]", "node.spool_gb"),
        ("[network]", "memory_gb = 9\n[network]", "node.memory_gb"),
        ("[run]", "[rules]\nrecipients = []\n[run]", "rules"),
    ],
)
def test_a_wrong_coordinator_file(tmp_path: Path, old: str, new: str, key: str) -> None:
    path = write(tmp_path, replaced(old, new, COORDINATOR))
    with pytest.raises(ConfigError) as caught:
        load_coordinator_config(path)
    assert str(caught.value).startswith(f"{path}")
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('recipients = ["ann", "office"]', 'recipients = ["ann"]', "office would receive"),
        ('["accuracy", "auc"]', '["auc"]', "accuracy would be revealed"),
        ('metrics = ["accuracy", "auc"]\n', "", "accuracy, auc would be revealed"),
        ("least_parties = 3", "least_parties = 4", "3 owners provide data"),
        ("least_parties = 3", 'models = ["linear"]', "a logistic model"),
        ("least_parties = 3", "least_test_rows = 50", "over 20 rows"),
        ('["registry"]', '["notary"]', "registry would deal but is not listed under dealers"),
        ('["ann", "bob", "cleo"]', '["ann", "bob"]', "cleo would compute but is not listed under"),
        ("least_parties = 3", "least_batch_rows = 17", "a step takes 16 rows"),
        ("least_parties = 3", "least_effective_rows = 25", "24.8 rows of ann's in effect"),
        ("least_group = 9", "least_group = 10", "are ann's, and the owner of the others"),
    ],
)
def test_a_job_that_breaks_the_rules_is_refused(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    job = load_job(write_job(tmp_path))
    check_rules(load_node_config(write(tmp_path, PARTY)).rules, job, "ann")
    rules = load_node_config(write(tmp_path, replaced(old, new, PARTY))).rules
    with pytest.raises(RefusedError) as caught:
        check_rules(rules, job, "ann")
    assert says in str(caught.value)
    assert "Nothing was shared" in str(caught.value)


def test_unknown_keys_of_tables_are_named_with_their_job_all_at_once(tmp_path: Path) -> None:
    """The reader of types writes [...] for a job's name: which table, and what else is wrong, would
    not be said."""
    text = replaced('ignore = ["id"]', 'delimitr = ";", decmal = ","', PARTY)
    text = replaced("[data]", '[data]\nfirst = { file = "x.csv" }\nsecond = { fil = "x" }', text)
    path = write(tmp_path, replaced("least_group", "least_grop", text))
    with pytest.raises(ConfigError) as caught:
        load_node_config(path)
    first, *rest = str(caught.value).splitlines()
    assert {line.split(": ")[1] for line in rest} == {
        "data.second.fil",
        "data.other.delimitr",
        "data.other.decmal",
        "rules.least_grop",
    }
    assert first.endswith("4 faults:")
