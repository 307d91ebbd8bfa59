"""What the commands share: options, printing of errors and results, opening of an identity."""

import contextlib
import enum
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mpc_train.base.printing import EscapingFormatter, error_escaped, say
from mpc_train.errors import ConfigError, NodeFailedError, classify, explain
from mpc_train.run.place import ENVIRONMENT, HOME_VARIABLE, Place, ProxyPlace, default_home

if TYPE_CHECKING:
    from mpc_train.run.node_config import Audit, NodeConfig
    from parties.audit.log import AuditLog
    from parties.keys.roster import Roster
    from parties.keys.vault import FileVault
    from parties.vault.store import Store
    from parties.wire.proxy import Proxy


class Format(enum.StrEnum):
    """How results are printed."""

    text = "text"
    json = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="text for people; json: the last line is one object.")
]
HomeOption = Annotated[
    Path | None,
    typer.Option(help="Directory of the identities; default: $MPC_TRAIN_HOME or ~/.mpc-train."),
]
PassphraseFileOption = Annotated[
    Path | None, typer.Option(help="Read the passphrase from this file.")
]
PassphraseFdOption = Annotated[
    int | None, typer.Option(help="Read the passphrase from this open file descriptor.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Log more, to standard error.")]
LiveOption = Annotated[
    int | None,
    typer.Option(
        "--live",
        metavar="PORT",
        help="Show the run on a page at this port of this machine, for its users alone; 0: any "
        "free port.",
    ),
]
ConfigOption = Annotated[Path, typer.Option("--config", help="This node's own file (TOML).")]


def emit(record: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, at once."""
    say(json.dumps(record, separators=(",", ":"), default=str))


@contextlib.contextmanager
def reporting(output: Format = Format.text) -> Iterator[None]:
    """Turn every error inside into one clear line and an exit status (`mpc_train.errors`).

    Of an unexpected error only kind and place are shown: its message might quote data.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and error.filename is None:
            _close_stdout()  # the reader of our output has closed it: `… | head`
            raise typer.Exit(1) from None
        name, code, status = classify(error)
        message = error_escaped(explain(error))
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted; nothing was left half-written"
        elif code == "internal" and not isinstance(error, NodeFailedError):
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"internal error: {type(error).__name__} at {place.filename}:{place.lineno}"
            log = logging.getLogger("mpc_train")
            log.info("".join(traceback.format_tb(error.__traceback__)))
        resume = getattr(error, "resume", None)
        if output is Format.json:
            more = {"resume": resume} if resume else {}
            emit({"status": name, "code": code, "message": message, **more})
        say(f"error: {message}", aside=True)
        if resume:
            where = "" if resume["step"] is None else f" after step {resume['step']}"
            say(f"The run can go on{where}: {resume['command']}", aside=True)
        raise typer.Exit(status) from None


def _close_stdout() -> None:
    # Python flushes when it ends, and would raise the error again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def configure_logging(verbose: bool = False) -> None:
    """Send warnings (with `verbose` everything) to standard error. Logs contain no secrets."""
    handler = logging.StreamHandler(sys.stderr)
    form = "%(levelname)s: %(name)s: %(message)s" if verbose else "%(levelname)s: %(message)s"
    handler.setFormatter(EscapingFormatter(form))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def home_of(home: Path | None, *, make: bool = False) -> Path:
    """The directory of the identities; raises IdentityError if the given one does not exist, unless
    the command will `make` it."""
    if home is None:
        return default_home()
    folder = home.expanduser()
    if not make:
        _check_home(folder, "correct --home")
    return folder


def _check_home(folder: Path, advice: str) -> None:
    from parties.errors import IdentityError

    if not folder.is_dir():
        what = "is not a directory" if folder.exists() else "there is no such directory"
        raise IdentityError(
            f"{folder}: {what}, but identities should be there; {advice}, or make an identity "
            "there: mpc-train identity new NAME"
        )


def check_there(path: Path, what: str) -> None:
    """Raise ConfigError if nothing has this path: a name that was mistyped proves nothing wrong
    with a result."""
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file; name {what}")


def _identities(home: Path) -> list[str]:
    return sorted(path.stem for path in home.glob("*.identity"))


def find_name(home: Path, name: str | None) -> str:
    """Return `name`, or the name of the only identity in `home`; raise IdentityError."""
    from parties.errors import IdentityError

    if name is not None:
        return name
    names = _identities(home)
    if len(names) == 1:
        return names[0]
    if not names:
        raise IdentityError(
            f"no identity in {home}; is this the right home? Name it with --home or "
            f"{HOME_VARIABLE}, or make an identity: mpc-train identity new NAME"
        )
    raise IdentityError(f"{home} holds several identities ({', '.join(names)}); say which")


def open_vault(
    home: Path, name: str, passphrase_file: Path | None, passphrase_fd: int | None
) -> "FileVault":
    """Open an identity with a passphrase from a file, a descriptor or the terminal.

    From here on this process holds secrets: no core dump, no debugger of the same user.
    """
    from parties.keys.passphrase import read_passphrase
    from parties.keys.vault import FileVault, identity_path
    from parties.process import guard

    guard()
    path = identity_path(home, name)
    if not path.exists():
        from parties.errors import IdentityError

        there = ", ".join(_identities(home))
        raise IdentityError(
            f"{path}: there is no such identity; "
            + (f"there are {there} in {home}; correct the name, or the home, or " if there else "")
            + f"make one: mpc-train identity new {name}"
        )
    prompt = f"Passphrase of {name}: "
    passphrase = read_passphrase(file=passphrase_file, fd=passphrase_fd, prompt=prompt)
    return FileVault.open(path, passphrase)


def enter(
    place: Place, audit: "Audit", passphrase_file: Path | None, passphrase_fd: int | None
) -> "tuple[FileVault, Roster]":
    """Open the identity and the roster that a node's file names."""
    from parties.keys.roster import Roster

    _check_home(place.home, "correct home under [node] in this node's file")
    roster = Roster.load(place.roster)
    return identity_at(place, audit, passphrase_file, passphrase_fd), roster


def identity_at(
    place: Place, audit: "Audit", passphrase_file: Path | None, passphrase_fd: int | None
) -> "FileVault":
    """Open the identity that a node's file names, by the passphrase file that it names unless an
    option says where else the passphrase comes from.

    That it failed is kept for the node's audit log, and told by its alerts when it happens again.
    """
    from parties.errors import PassphraseError

    _check_home(place.home, "correct home under [node] in this node's file")
    if place.lock_memory:
        from parties.process import lock_memory

        lock_memory()
    if passphrase_file is None and passphrase_fd is None:
        passphrase_file = place.passphrase_file
    try:
        return open_vault(place.home, place.name, passphrase_file, passphrase_fd)
    except PassphraseError:
        from mpc_train.node.logbook import failed_attempt

        failed_attempt(place, audit)
        raise


def proxy_of(place: ProxyPlace | None) -> "Proxy | None":
    """The HTTP proxy that a node's file names, with its password from the file that it names, from
    the terminal or, for HTTPS_PROXY, from there. Raises ConfigError and PassphraseError."""
    from mpc_train.errors import ConfigError
    from parties.errors import PassphraseError
    from parties.keys.passphrase import read_passphrase
    from parties.wire.proxy import Proxy

    if place is None:
        return None
    url, direct = place.url, place.direct
    if url == ENVIRONMENT:
        url = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY") or ""
        none = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        direct += tuple(each.strip() for each in none.split(",") if each.strip())
        if not url:
            return None
    try:
        proxy = Proxy.from_url(url, direct=direct)
    except ValueError as error:
        raise ConfigError(f"HTTPS_PROXY or NO_PROXY: {error}") from None
    if not proxy.lacks_password:
        return proxy
    prompt = f"Password of {proxy.user} at the proxy {proxy.url}: "
    try:
        password = read_passphrase(file=place.password_file, prompt=prompt)
    except PassphraseError as error:
        why = error if place.password_file else "no terminal to ask for it"
        raise PassphraseError(
            f"password of the proxy: {why}; proxy_password_file under [network] names its file"
        ) from None
    return Proxy.from_url(url, password, direct)


class OpenedNode(NamedTuple):
    """A node's vault and audit log, opened with its identity."""

    store: "Store"
    audit: "AuditLog"
    identity: "FileVault"
    config: "NodeConfig"


@contextlib.contextmanager
def opened_vault(
    config: Path, passphrase_file: Path | None, passphrase_fd: int | None, verb: str
) -> Iterator[OpenedNode]:
    """The vault of a node, and its audit log, which says that it was opened and what for."""
    from mpc_train.node.logbook import logbook
    from mpc_train.node.storage import open_key
    from mpc_train.run.node_config import load_node_config
    from parties.vault.store import Store, using

    node = load_node_config(config)
    # Nobody rotates the keys meanwhile: they are opened under the lock.
    with using(node.vault.folder):
        identity = identity_at(node.place, node.audit, passphrase_file, passphrase_fd)
        keys = open_key(node.vault.key, identity)
        with logbook(node.place, node.audit, identity, keys, verb) as audit:
            store = Store(node.vault.folder, node.place.name, keys)
            yield OpenedNode(store, audit, identity, node)


def ask_to_destroy(question: str, output: Format) -> None:
    """Return if somebody at the terminal says yes; otherwise raise ConfigError."""
    if output is Format.json or not sys.stdin.isatty():
        raise ConfigError(
            "nothing was destroyed: there is no terminal to ask at; if it is to be destroyed, run "
            "the command again with --yes"
        )
    if not typer.confirm(question, default=False, err=True):
        raise ConfigError("nothing was destroyed")
