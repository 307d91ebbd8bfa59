"""`mpc-train gateway`: a REST service on the client's own machine (`mpc_train/docs/serving.md`)."""

import contextlib
import re
import secrets
from pathlib import Path
from typing import Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    PassphraseFdOption,
    PassphraseFileOption,
    VerboseOption,
    configure_logging,
    emit,
    enter,
    reporting,
)
from mpc_train.errors import ConfigError
from parties.files import exposed, read_private, write_atomic
from parties.stop import sigterm_interrupts

CONNECT_S = 20.0
"""How long a request waits for a service that is away. The first connection may take `join_s`."""
TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{32,512}\Z")


def gateway_command(
    config: ConfigOption,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where to listen; port 0: any free one. An address that other machines reach "
            "needs --certificate and --key.",
        ),
    ] = "127.0.0.1:8080",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="The file of the token that callers show, of at least 32 characters; made if it "
            "does not exist. Default: NAME.gateway-token in the home."
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="TLS: the certificate and its chain, in PEM.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="TLS: its private key, in PEM, which nobody else may read."),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Answer programs of this machine over HTTP (KServe v1) with models in shares, until
    interrupted. Rows leave this machine only as shares."""
    with reporting(output):
        try:
            from mpc_train.gateway.app import LOCAL_HOSTS, Gateway
            from mpc_train.gateway.server import Listen, Server, Tls
        except ImportError as error:
            raise ConfigError(
                f"the gateway needs {error.name}; install it: pip install 'mpc-train[gateway]'"
            ) from error
        from mpc_train.commands.serving.service import connected
        from mpc_train.node.logbook import logbook
        from mpc_train.node.storage import NodeVault
        from mpc_train.run.node_config import load_node_config

        configure_logging(verbose)
        place = Listen.of(listen)
        if (certificate is None) != (key is None):
            raise ConfigError("--certificate and --key belong together")
        tls = None
        if certificate is not None and key is not None:
            _check_key(key)
            tls = Tls(certificate, key)
        node = load_node_config(config)
        identity, roster = enter(node.place, node.audit, passphrase_file, passphrase_fd)
        keys = NodeVault(node.vault, node.place.name, identity).keys()
        where = token_file
        if where is None:
            where = node.place.home / f"{node.place.name}.gateway-token"
        token = token_in(where)
        with (
            logbook(node.place, node.audit, identity, keys, "gateway") as audit,
            connected(
                node, identity, roster, audit, CONNECT_S, float(node.timeouts.join_s)
            ) as service,
            sigterm_interrupts(),
        ):
            gateway = Gateway(service, token, None if tls else LOCAL_HOSTS)
            server = Server(gateway, place, tls)
            models = sorted(service.models)
            if output is Format.json:
                emit(
                    {
                        "event": "serving",
                        "url": server.url,
                        "token_file": str(where),
                        "models": models,
                    }
                )
            else:
                say(f"Answering at {server.url} for {', '.join(models) or 'no model yet'}")
                say(f"Callers show the token in {where}; {server.url}/docs says how")
            with contextlib.suppress(KeyboardInterrupt):  # the way to end it
                server.run()
        if output is Format.json:
            emit({"status": "ok", "answered": gateway.answered})
        else:
            say(f"Answered {gateway.answered} rows.")


def token_in(path: Path) -> str:
    """The token in a file that nobody else may read; a file that does not exist is made. Raises
    ConfigError."""
    try:
        if not path.exists():
            made = secrets.token_urlsafe(TOKEN_BYTES)
            write_atomic(path, f"{made}\n".encode(), replace=False)
        found = read_private(path, 1024).decode("ascii", "replace").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: the token cannot be kept or read there ({why})") from error
    if _TOKEN.match(found) is None:
        raise ConfigError(
            f"{path}: is not a token of 32 to 512 letters, digits and ._~+/=-; remove the file, "
            "and the gateway makes one"
        )
    return found


def _check_key(path: Path) -> None:
    try:
        problem = exposed(path, path.stat())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if problem is not None:
        raise ConfigError(f"{path}: {problem}")
