"""A node's own file: who it is, whom it talks to, where its data are and what it allows.

Each organisation writes its own and shows it to nobody. Paths are relative to the file. A party
and a dealer have the same kind of file; a coordinator has no data and no rules, and names the
job instead.

`mpc_train/docs/node-file.md` lists every key and `node.toml` beside it has them all: both are
generated from the structs here (`python -m tests.support.node_reference`), so that a key's
docstring is its documentation.
"""

import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote_plus, unquote_plus

import msgspec

from mpc_train.admission.policy import Policy
from mpc_train.admission.rules import Rules, rule_faults
from mpc_train.base.strict_toml import all_at, load_toml
from mpc_train.errors import ConfigError, DataError
from mpc_train.run.place import (
    ENVIRONMENT,
    KeyPlace,
    Place,
    ProxyPlace,
    VaultPlace,
    default_home,
)
from mpc_train.tables.source import Fault, Source, SourceProblem, check_source, resolved
from protocols.names import NAME

_ADDRESS = re.compile(r"tcp://(\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._*-]+):(\d{1,5}|\*)\Z")
_WEBHOOK = re.compile(r"https://[A-Za-z0-9.:\[\]-]+(/[!-~]*)?\Z")
_PROXY = re.compile(
    r"http://(?:(?P<user>[^\s:@/?#]+)@)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})/?\Z"
)
_DIRECT = re.compile(r"[A-Za-z0-9._:*-]+(/\d{1,3})?\Z")
_URI_PATH = re.compile(r"([?&](?:ca|module-path)=)([^&]+)")
_EVERY_INTERFACE = ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:")
_MIN_TIMEOUT_S, _MAX_TIMEOUT_S = 1, 7 * 24 * 3600
_MAX_DIAL_S = 60
_MAX_HEARTBEAT_S, _MAX_SILENCE_S = 60, 600
_MAX_KEY_DAYS = 3650
_MAX_CARD_DAYS = 1826
_SPOOL_GB, _MAX_SPOOL_GB = 20.0, 1_000_000


NOTHING_ALLOWED = Rules((), (), ())


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Node(_Strict, frozen=True):
    """`[node]`: who this node is, and where it keeps its files."""

    name: str
    """The node's name, which is that of its identity; others use it too."""
    home: str = ""
    """Directory of the identity and of the node's record of its runs; if omitted, $MPC_TRAIN_HOME
    or ~/.mpc-train."""
    roster: str = ""
    """Cards of the others: a directory or a .toml file; if omitted, `roster` in the home."""
    run_dir: str = "runs"
    """Directory in which each run gets its own directory."""
    approvals: str = ""
    """Directory of the files of `mpc-train job approve`; if omitted, `approvals` in the home."""
    passphrase_file: str = ""
    """File with the identity's passphrase, which nobody else may read; if omitted, the node asks
    for the passphrase, unless --passphrase-file or --passphrase-fd is given."""
    lock_memory: bool = False
    """Linux: keep the node's memory out of swap. Needs a limit of locked memory (ulimit -l) as
    large as the node's memory."""
    rotate_after_days: int = 0
    """When the node's card is older than this many days, the node makes new keys by itself during a
    run, as `mpc-train identity rotate` does; 0 means never. Not for a coordinator."""
    device: Literal["", "cpu", "cuda"] = ""
    """Where this node trains on its own rows in a federated job; if omitted, on a GPU if PyTorch
    finds one."""
    checkpoint_s: int = 60
    """At least so many seconds lie between two checkpoints of a training, from 0 to 7 days. The
    file of the first evaluator decides."""
    memory_gb: float = 0
    """How many GB (10^9 bytes) the node's process may take for a job; 0: what the machine has free,
    and the limits set to the process. A job that needs more is refused before it is signed. Not for
    a coordinator."""
    spool_gb: float = _SPOOL_GB
    """At most this many GB (10^9 bytes) of the dealer's material are stored in the run's directory,
    encrypted, for a job with train.preprocess. Not for a coordinator."""


class _ColumnKey(_Strict, frozen=True):
    """`[vault.columns]`: a key for single columns of tables in the vault, by a name of your own."""

    key: str
    """The key service, written as `key` of `[vault]`; identity: and `[vault]` key are refused,
    since who opens the table could open these columns, too."""
    passphrase_file: str = ""
    """File with this key's passphrase, token or PIN; left out, it is asked for."""


class _Vault(_Strict, frozen=True):
    """`[vault]`: where this node keeps its tables encrypted, and under which key."""

    folder: str = ""
    """Directory of the vault; left out, `vault` in the home."""
    key: str = "identity:"
    """The key service that wraps the keys of what lies there: identity: is the node's own identity,
    file:PATH a file of keys that `mpc-train vault key` makes; keyring:, vault:, aws-kms:, gcp-kms:
    and pkcs11: are services of others, see `mpc_train/docs/vault.md`."""
    passphrase_file: str = ""
    """File with the passphrase of file: keys, the token of vault: or the PIN of pkcs11:, which
    nobody else may read; left out, it is asked for."""
    rotate_after_days: int = 365
    """How old a key may get before `mpc-train vault rotate --if-due` rotates it, from 1 to 3650."""
    rotate_after_objects: int = 1_000_000
    """How many objects a key may wrap before it does, from 1."""
    columns: dict[str, _ColumnKey] = {}
    """By a name of your own, the keys of single columns, which `mpc-train vault import --protect
    COLUMN=NAME` uses. A node that does not name a key, or cannot use it, refuses jobs that use its
    columns."""


class Audit(_Strict, frozen=True):
    """`[audit]`: who is told at once of what the node's audit log calls alarming. The log itself is
    always kept."""

    webhook: str = ""
    """https:// address that gets each alert as JSON in a POST; its certificate is verified."""
    command: tuple[str, ...] = ()
    """Program and its arguments, which get each alert as JSON on standard input."""
    per_minute: int = 6
    """Alerts in a minute, from 1 to 60; the next one says how many were left out."""


class _Peer(_Strict, frozen=True):
    """`[coordinator]`: whom this node dials."""

    name: str
    """The coordinator's name in the roster, which must contain its card."""
    address: str
    """The address on which it listens, tcp://host:port."""


class Timeouts(_Strict, frozen=True):
    """`[timeouts]`: how long to wait, in seconds: from 1 second to 7 days unless stated
    otherwise."""

    join_s: int = 600
    """How long to wait until the coordinator answers and everybody has joined, and for a person's
    answer. A node waits twice as long for the others to sign."""
    peer_s: int = 120
    """How long a connected peer may send nothing during a run."""
    reconnect_s: int = 120
    """How long to wait for a node or the coordinator whose connection broke, from 0, which ends the
    run at once, to 7 days. The smallest of all counts. When it comes back, nothing is lost."""
    heartbeat_s: int = 1
    """Seconds between heartbeats on a connection, from 1 to 60: less than the time after which a
    firewall or proxy on the way cuts a silent one."""
    silence_s: int = 5
    """After how many seconds without an answer a connection counts as broken, at least twice
    `heartbeat_s`, to 600. A slow line needs more: a frame of 1 MiB must pass within this time. The
    smaller values of the two ends hold."""
    dial_s: int = 8
    """How long a node tries the addresses of the others, from 1 to 60. It reaches nodes that it
    cannot dial by then through the coordinator. Not for a coordinator, which dials nobody."""
    return_s: int = 600
    """How long a coordinator waits for a node that left after the job was proposed, to correct its
    table, or because it was restarted during a run; and how long a node waits for a coordinator
    that was lost during a run. From 0, which ends the run at once, to 7 days."""

    @property
    def pulse(self) -> tuple[float, float]:
        """`heartbeat_s` and `silence_s`."""
        return float(self.heartbeat_s), float(self.silence_s)


class _Network(_Strict, frozen=True):
    """`[network]`: whether others may dial this node."""

    listen: str = ""
    """The address on which others may dial this node, tcp://host:port, * for a free port; if
    omitted, nobody can, and its sealed frames go through the coordinator. A coordinator needs
    it."""
    advertise: str = ""
    """The address that others dial instead, if they cannot dial `listen`: behind a router, or for
    tcp://0.0.0.0:port. Not for a coordinator, whose address is in the nodes' files."""
    proxy: str = ""
    """HTTP proxy through which the node dials the coordinator and the others, as
    http://proxy.example.org:3128 or http://user@proxy.example.org:3128; environment: that of
    HTTPS_PROXY and NO_PROXY, which are not used otherwise. Not for a coordinator."""
    proxy_password_file: str = ""
    """File with the proxy's password, which nobody else may read; if omitted, the node asks for the
    password of a proxy that has a user."""
    no_proxy: tuple[str, ...] = ()
    """Hosts that are dialled without the proxy: names, which stand for all names below them too,
    addresses, and networks like 10.0.0.0/8. This machine is always dialled without it."""


class PolicyPlace(_Strict, frozen=True):
    """`[policy]`: the signed file that has the rules, instead of `[rules]`
    (`mpc_train/docs/policy.md`)."""

    file: str
    """The policy; its signatures are beside it, in a file whose name ends in `.sig`."""
    signers: tuple[str, ...]
    """Whose signatures count, by name in the roster."""
    least_signers: int = 0
    """How many of them must have signed it; 0: all."""


class _PartyFile(_Strict, frozen=True):
    node: _Node
    coordinator: _Peer
    rules: Rules | None = None
    policy: PolicyPlace | None = None
    network: _Network = _Network()
    vault: _Vault = _Vault()
    audit: Audit = Audit()
    data: dict[str, str | Source] = {}
    """`[data]`: by job name, this node's table: a path, or a table with these keys. Only owners of
    data need it."""
    warm_start: dict[str, str] = {}
    """`[warm_start]`: by job name, the state_dict (.safetensors) from which training starts. Only
    if the job starts from a file, and this node provides it."""
    timeouts: Timeouts = Timeouts()


class _Run(_Strict, frozen=True):
    """`[run]`: what a coordinator runs."""

    job: str
    """The job file."""


class _CoordinatorFile(_Strict, frozen=True):
    node: _Node
    network: _Network
    run: _Run
    audit: Audit = Audit()
    timeouts: Timeouts = Timeouts()


@dataclass(frozen=True)
class NodeConfig:
    """A party's or dealer's file, checked, with absolute paths."""

    path: Path
    place: Place
    coordinator: str
    """Name of the coordinator; its card must be in the roster."""
    coordinator_address: str
    listen: str | None
    """The address on which peers may dial this node; None: its sealed frames go through the
    coordinator."""
    advertise: str | None
    """The address that peers dial, if it differs from `listen`."""
    rules: Rules
    """Those of the file, or of its policy once `node.policy` has accepted that; until then, none
    that allows a job."""
    policy: PolicyPlace | None
    """Where the policy is, with an absolute path."""
    accepted: Policy | None
    """The policy that `rules` are from."""
    vault: VaultPlace
    audit: Audit
    proxy: ProxyPlace | None
    """The HTTP proxy through which this node dials."""
    data: dict[str, Source]
    """By job name, the location and the format of this node's table."""
    warm_start: dict[str, Path]
    """By job name, the state_dict from which training starts, if the job needs one."""
    timeouts: Timeouts

    def source(self, job: str) -> Source:
        """Return the table for `job`; raise DataError if none is declared."""
        try:
            return self.data[job]
        except KeyError:
            raise DataError(
                f'{self.path}: no table for the job {job!r}; under [data] write {job} = "file.csv"'
            ) from None

    def start_file(self, job: str) -> Path:
        """Return the state_dict from which `job` starts; raise DataError if none is declared."""
        try:
            return self.warm_start[job]
        except KeyError:
            raise DataError(
                f"{self.path}: no state_dict for the job {job!r} to start from; under [warm_start] "
                f'write {job} = "file.safetensors"'
            ) from None


@dataclass(frozen=True)
class CoordinatorConfig:
    """A coordinator's file, checked, with absolute paths."""

    path: Path
    place: Place
    listen: str
    job: Path
    audit: Audit
    timeouts: Timeouts


def load_node_config(path: Path | str) -> NodeConfig:
    """Read a party's or dealer's file; raise ConfigError with all faults, by line and key."""
    path = Path(path).absolute()
    parsed, text = load_toml(path, _PartyFile, ConfigError)
    check = _Checker(path, text)
    check.name("coordinator.name", parsed.coordinator.name)
    check.address("coordinator.address", parsed.coordinator.address, dial=True)
    listen, advertise = parsed.network.listen, parsed.network.advertise
    if listen:
        check.address("network.listen", listen)
        if not advertise and listen.startswith(_EVERY_INTERFACE):
            check.note(
                "network.listen",
                "others cannot dial this; add advertise = an address that they can dial",
            )
    if advertise:
        if not listen:
            check.note("network.advertise", "needs listen as well")
        check.address("network.advertise", advertise, dial=True)
    proxy = check.proxy(parsed.network)
    rules = check.rules(parsed.rules, parsed.policy, parsed.node.name)
    check.signers(parsed.policy)
    check.timeouts(parsed.timeouts)
    check.audit(parsed.audit)
    data: dict[str, Source] = {}
    for name, entry in parsed.data.items():
        check.name(f"data.{name}", name)
        given = Source(entry) if isinstance(entry, str) else entry
        try:
            check_source(given)
        except SourceProblem as problem:
            check.faults += (
                [(f"data.{name}", str(problem))]
                if isinstance(entry, str)
                else problem.under(f"data.{name}")
            )
        else:
            data[name] = resolved(given, check.resolve)
    for name in parsed.warm_start:
        check.name(f"warm_start.{name}", name)
    place = check.place(parsed.node)
    vault = check.vault(parsed.vault, place.home)
    check.done()
    return NodeConfig(
        path=path,
        place=place,
        coordinator=parsed.coordinator.name,
        coordinator_address=parsed.coordinator.address,
        listen=listen or None,
        advertise=advertise or None,
        rules=rules,
        policy=check.policy(parsed.policy),
        accepted=None,
        vault=vault,
        audit=parsed.audit,
        proxy=proxy,
        data=data,
        warm_start={name: check.resolve(file) for name, file in parsed.warm_start.items()},
        timeouts=parsed.timeouts,
    )


def load_coordinator_config(path: Path | str) -> CoordinatorConfig:
    """Read a coordinator's file; raise ConfigError with all faults, by line and key."""
    path = Path(path).absolute()
    parsed, text = load_toml(path, _CoordinatorFile, ConfigError)
    check = _Checker(path, text)
    if not parsed.network.listen:
        check.note("network.listen", 'write listen = "tcp://0.0.0.0:7700"')
    else:
        check.address("network.listen", parsed.network.listen)
    if parsed.network.advertise:
        check.note(
            "network.advertise", "not for a coordinator: the nodes' files contain its address"
        )
    for key in ("proxy", "proxy_password_file", "no_proxy"):
        if getattr(parsed.network, key):
            check.note(f"network.{key}", "not for a coordinator, which dials nobody")
    check.timeouts(parsed.timeouts)
    check.audit(parsed.audit)
    if parsed.node.rotate_after_days:
        check.note("node.rotate_after_days", "not for a coordinator: rotate its identity by hand")
    if parsed.node.memory_gb:
        check.note("node.memory_gb", "not for a coordinator: it computes nothing")
    if parsed.node.spool_gb != _SPOOL_GB:
        check.note("node.spool_gb", "not for a coordinator: it stores nothing of the dealer's")
    place = check.place(parsed.node)
    check.done()
    return CoordinatorConfig(
        path=path,
        place=place,
        listen=parsed.network.listen,
        job=check.resolve(parsed.run.job),
        audit=parsed.audit,
        timeouts=parsed.timeouts,
    )


@dataclass(frozen=True)
class LogConfig:
    """What any node's file says about its audit log, and where it listens, if it does. vault,
    party: None at a coordinator."""

    place: Place
    audit: Audit
    vault: VaultPlace | None
    party: NodeConfig | None
    listen: str | None


def load_any_config(path: Path | str) -> LogConfig:
    """Read a node's file of whatever kind, for its log; raises ConfigError."""
    path = Path(path).absolute()
    if "run" in _sections(path):
        coordinator = load_coordinator_config(path)
        return LogConfig(coordinator.place, coordinator.audit, None, None, coordinator.listen)
    node = load_node_config(path)
    return LogConfig(node.place, node.audit, node.vault, node, node.listen)


def _sections(path: Path) -> frozenset[str]:
    """The names at the top of a file, as far as it can be read: its own loader says what is wrong
    with it."""
    try:
        return frozenset(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError):
        return frozenset()


class _Checker:
    """Checks the values of one file, and reports all faults with their places."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.faults: list[Fault] = []

    def note(self, key: str, message: str) -> None:
        self.faults.append((key, message))

    def done(self) -> None:
        """Raise ConfigError with all noted faults, if any."""
        if self.faults:
            raise all_at(ConfigError, self.path, self.text, self.faults)

    def resolve(self, path: str) -> Path:
        return (self.path.parent / Path(path).expanduser()).absolute()

    def name(self, key: str, name: str) -> None:
        if not NAME.match(name):
            self.note(key, f"{name!r} is not a name: use a-z, 0-9 and -")

    def address(self, key: str, address: str, *, dial: bool = False) -> None:
        match = _ADDRESS.match(address)
        if not match or (match[2] != "*" and not 0 <= int(match[2]) <= 65535):
            self.note(key, "write tcp://host:port, like tcp://study.example.org:7700")
        elif dial and ("*" in address or int(match[2]) == 0):
            self.note(key, "an address that others can dial has a host and a port")

    def proxy(self, network: _Network) -> ProxyPlace | None:
        for each in network.no_proxy:
            if not _DIRECT.match(each):
                self.note("network.no_proxy", f"{each!r} is no name, address or network")
            elif "/" in each:
                try:
                    ipaddress.ip_network(each, strict=False)
                except ValueError:
                    self.note("network.no_proxy", f"{each!r} is no network; write 10.0.0.0/8")
        if not network.proxy:
            if network.proxy_password_file:
                self.note("network.proxy_password_file", "needs proxy as well")
            return None
        if network.proxy != ENVIRONMENT:
            match = _PROXY.match(network.proxy)
            if "@" in network.proxy and ":" in network.proxy.rpartition("@")[0][len("http://") :]:
                self.note(
                    "network.proxy",
                    "a password does not belong here; write it into a file, and its path into "
                    "proxy_password_file",
                )
            elif match is None or not 0 < int(match["port"]) <= 65535:
                self.note(
                    "network.proxy",
                    "write http://proxy.example.org:3128, with a port; or environment",
                )
            elif network.proxy_password_file and not match["user"]:
                self.note("network.proxy", "with a password a user is needed: http://USER@…")
        file = network.proxy_password_file
        return ProxyPlace(network.proxy, self.resolve(file) if file else None, network.no_proxy)

    def rules(self, rules: Rules | None, policy: PolicyPlace | None, me: str) -> Rules:
        """The rules of the file; of a file that names a policy, rules that allow no job."""
        if (rules is None) == (policy is None):
            self.note(
                "rules" if policy is None else "policy",
                "write either [rules], what your organisation allows, or [policy], the signed file "
                "that says so",
            )
        if rules is None:
            return NOTHING_ALLOWED
        self.faults += rule_faults(rules)
        if rules.operators and me not in rules.operators:
            self.note("rules.operators", f"this node is {me}, which is not one of them")
        return rules

    def signers(self, policy: PolicyPlace | None) -> None:
        if policy is None:
            return
        for name in policy.signers:
            self.name("policy.signers", name)
        distinct = len(set(policy.signers))
        if not distinct or distinct < len(policy.signers):
            self.note("policy.signers", "at least one name is needed, and each once")
        if not 0 <= policy.least_signers <= distinct:
            self.note("policy.least_signers", f"between 0, which means all, and {distinct}")

    def policy(self, policy: PolicyPlace | None) -> PolicyPlace | None:
        if policy is None:
            return None
        return msgspec.structs.replace(
            policy,
            file=str(self.resolve(policy.file)),
            least_signers=policy.least_signers or len(policy.signers),
        )

    def timeouts(self, timeouts: Timeouts) -> None:
        for key in ("join_s", "peer_s"):
            if not _MIN_TIMEOUT_S <= getattr(timeouts, key) <= _MAX_TIMEOUT_S:
                self.note(f"timeouts.{key}", "between 1 second and 7 days")
        for key in ("return_s", "reconnect_s"):
            if not 0 <= getattr(timeouts, key) <= _MAX_TIMEOUT_S:
                self.note(f"timeouts.{key}", "between 0 seconds and 7 days")
        if not 1 <= timeouts.heartbeat_s <= _MAX_HEARTBEAT_S:
            self.note("timeouts.heartbeat_s", f"between 1 and {_MAX_HEARTBEAT_S} seconds")
        if not 2 * timeouts.heartbeat_s <= timeouts.silence_s <= _MAX_SILENCE_S:
            self.note(
                "timeouts.silence_s",
                f"at least twice heartbeat_s, and at most {_MAX_SILENCE_S} seconds",
            )
        if not 1 <= timeouts.dial_s <= _MAX_DIAL_S:
            self.note("timeouts.dial_s", f"between 1 and {_MAX_DIAL_S} seconds")

    def audit(self, audit: Audit) -> None:
        if audit.webhook and not _WEBHOOK.match(audit.webhook):
            self.note("audit.webhook", "write https://host/…; nothing else is encrypted")
        if audit.command and not all(audit.command):
            self.note("audit.command", 'write ["program", "argument"]')
        if not 1 <= audit.per_minute <= 60:
            self.note("audit.per_minute", "between 1 and 60")

    def vault(self, vault: _Vault, home: Path) -> VaultPlace:
        own = self.key(vault.key, vault.passphrase_file)
        if not 1 <= vault.rotate_after_days <= _MAX_KEY_DAYS:
            self.note("vault.rotate_after_days", f"from 1 to {_MAX_KEY_DAYS}")
        if vault.rotate_after_objects < 1:
            self.note("vault.rotate_after_objects", "at least 1")
        columns = {}
        for name, each in vault.columns.items():
            self.name(f"vault.columns.{name}", name)
            columns[name] = self.key(each.key, each.passphrase_file)
            if each.key == "identity:" or columns[name].uri == own.uri:
                self.note(f"vault.columns.{name}.key", "name another key than the vault's own")
        return VaultPlace(
            folder=self.resolve(vault.folder) if vault.folder else home / "vault",
            key=own,
            columns=columns,
            most_days=vault.rotate_after_days,
            most_objects=vault.rotate_after_objects,
        )

    def key(self, uri: str, passphrase_file: str) -> KeyPlace:
        if uri.startswith("file:"):
            uri = f"file:{self.resolve(uri.removeprefix('file:'))}"
        uri = _URI_PATH.sub(lambda found: found[1] + self.uri_path(found[2]), uri)
        return KeyPlace(uri, self.resolve(passphrase_file) if passphrase_file else None)

    def uri_path(self, quoted: str) -> str:
        """A path behind the ? of a URI; the services themselves want it absolute."""
        path = unquote_plus(quoted)
        return quoted if path.startswith("/") else quote_plus(str(self.resolve(path)), safe="/")

    def place(self, node: _Node) -> Place:
        self.name("node.name", node.name)
        if not 0 <= node.rotate_after_days <= _MAX_CARD_DAYS:
            self.note(
                "node.rotate_after_days", f"between 0, which means never, and {_MAX_CARD_DAYS}"
            )
        if not 0 <= node.checkpoint_s <= _MAX_TIMEOUT_S:
            self.note("node.checkpoint_s", "between 0 seconds and 7 days")
        if not 0 <= node.memory_gb <= _MAX_SPOOL_GB:
            self.note("node.memory_gb", f"between 0 and {_MAX_SPOOL_GB:,} GB")
        if not 0 <= node.spool_gb <= _MAX_SPOOL_GB:
            self.note("node.spool_gb", f"between 0 and {_MAX_SPOOL_GB:,} GB")
        home = self.resolve(node.home) if node.home else default_home().absolute()
        return Place(
            name=node.name,
            home=home,
            roster=self.resolve(node.roster) if node.roster else home / "roster",
            run_dir=self.resolve(node.run_dir),
            approvals=self.resolve(node.approvals) if node.approvals else home / "approvals",
            passphrase_file=self.resolve(node.passphrase_file) if node.passphrase_file else None,
            lock_memory=node.lock_memory,
            rotate_after_days=node.rotate_after_days,
            memory_bytes=round(node.memory_gb * 1e9),
            spool_bytes=round(node.spool_gb * 1e9),
            checkpoint_s=float(node.checkpoint_s),
            device=node.device,
        )
