"""`mpc-train he`: predictions under homomorphic encryption, by a model that one organisation holds.

The server never sees a record, the client never sees the model: `mpc_train/docs/homomorphic.md`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

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
    opened_vault,
    reporting,
)
from mpc_train.commands.table_options import (
    DateFormatOption,
    DatePivotOption,
    DecimalOption,
    DelimiterOption,
    EncodingOption,
    ReadOption,
    given_source,
)
from mpc_train.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from mpc_train.commands.common import OpenedNode
    from mpc_train.commands.serving.connections import ServerLine
    from mpc_train.homomorphic.description import Description
    from mpc_train.homomorphic.keys import KeyPair
    from mpc_train.homomorphic.seal import Seal

he = typer.Typer(no_args_is_help=True, help="Predictions under homomorphic encryption.")

KEY_NAME = "homomorphic"
"""The name of the key pair in the vault, among the keys there, which are never exported."""

_SERVER = re.compile(
    r"([a-z0-9-]+)=(?:tcp://)?((?:\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._-]+):\d{1,5})\Z"
)

ServerOption = Annotated[
    str,
    typer.Option("--server", metavar="NAME=HOST:PORT", help="The server: its name in the roster."),
]


@he.command("keys")
def keys_command(
    config: ConfigOption,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Make a key pair for questions and keep it in the vault. A new one replaces the one before,
    which stays in the vault as an earlier version until it is shredded."""
    with reporting(output):
        from mpc_train.homomorphic.keys import KeyPair
        from mpc_train.homomorphic.seal import Seal
        from mpc_train.node.storage import KEY

        seal = Seal()
        with opened_vault(config, passphrase_file, passphrase_fd, "he keys") as node:
            made = KeyPair.generate(seal)
            with node.store.writing(KEY, KEY_NAME) as out:
                out.write(made.stored())
            version = node.store.versions(KEY, KEY_NAME)[-1]
        if output is Format.json:
            emit({"status": "ok", "key": made.ident.hex(), "version": version})
        else:
            say(f"Key {made.ident.hex()} is in the vault, version {version}.")


@he.command("serve")
def serve_command(
    config: ConfigOption,
    models: Annotated[
        Path, typer.Option("--models", help="The file of models, clients and quotas (TOML).")
    ],
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Answer encrypted questions with opened models, until interrupted."""
    with reporting(output):
        from mpc_train.commands.serving.serve import serve
        from mpc_train.homomorphic.serving_file import load_serving_file

        configure_logging(verbose)

        def ready(address: str, names: list[str], clients: tuple[str, ...]) -> None:
            if output is Format.json:
                emit({"event": "serving", "address": address, "models": names})
            else:
                say(f"Serving {', '.join(names)} on {address} for {', '.join(clients)}")

        answered = serve(config, load_serving_file(models), passphrase_file, passphrase_fd, ready)
        if output is Format.json:
            emit({"status": "ok", "answered": answered})
        else:
            say(f"Answered {answered} requests.")


@he.command("show")
def show_command(
    config: ConfigOption,
    server: ServerOption,
    model: Annotated[str, typer.Option(help="The name of the model at the server.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the description here, for --model of query.")
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Print what a server says of a model: the columns that it takes, and what it predicts."""
    name, address = _server(server)
    with reporting(output):
        from mpc_train.homomorphic.asking import describe
        from parties.files import write_atomic

        with (
            opened_vault(config, passphrase_file, passphrase_fd, "he show") as node,
            _line(node, name, address) as line,
        ):
            found = describe(line, model)
        if out is not None:
            try:
                write_atomic(out, found.data, 0o644)
            except OSError as error:
                raise ConfigError(f"{out}: cannot be written ({error.strerror})") from error
        _tell(found, output)


@he.command("query")
def query_command(
    table: Annotated[
        Path,
        typer.Argument(metavar="TABLE", help="Records: CSV, Excel, Parquet, Arrow or npz."),
    ],
    config: ConfigOption,
    server: ServerOption,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="The model's name at the server, or the file of mpc-train he show --out: then a "
            "model that has changed is refused.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(help="Output file: .csv or .json (one object per line), or vault:NAME."),
    ],
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="A column to keep with the predictions; may be given several times.",
        ),
    ] = None,
    delimiter: DelimiterOption = "",
    encoding: EncodingOption = "",
    decimal: DecimalOption = "",
    date_format: DateFormatOption = "",
    date_pivot: DatePivotOption = 0,
    read: ReadOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Predict the label of each record with a model at a server, which gets ciphertexts only."""
    name, address = _server(server)
    with reporting(output):
        from mpc_train.commands.predict import form_of, into_file, named_in_vault
        from mpc_train.homomorphic.asking import EncryptedPredictor, Question, describe
        from mpc_train.homomorphic.seal import Seal
        from mpc_train.node.storage import PREDICTIONS, text_into
        from mpc_train.results.predictions import write_records
        from mpc_train.tables.spelling import name_of

        into = named_in_vault(out)
        form = "csv" if into is not None else form_of(out, table)
        source = given_source(
            table,
            read,
            delimiter=delimiter,
            encoding=encoding,
            decimal=decimal,
            date_format=date_format,
            date_pivot=date_pivot,
        )
        expected = _expected(model)
        seal = Seal()
        with opened_vault(config, passphrase_file, passphrase_fd, "he query") as node:
            pair = _key(node, seal)
            with _line(node, name, address) as line:
                found = describe(line, model if expected is None else expected.name)
                if expected is not None and expected.digest != found.digest:
                    raise ArtifactError(
                        f"{model}: {name} now describes {found.name} differently; look at it with "
                        "mpc-train he show, and write the file anew if you accept it"
                    )
                question = Question(line, pair, found)
                predictor = EncryptedPredictor.of(question)
                kept = tuple(map(name_of, ids or ()))
                predictor.check_ids(kept)

                def write_to(file: TextIO) -> int:
                    return write_records(predictor, source, file, form, kept)

                if into is not None:
                    with text_into(node.store, PREDICTIONS, into, found.digest.hex()) as file:
                        rows = write_to(file)
                else:
                    rows = into_file(Path(out), write_to)
        if output is Format.json:
            sent, got = question.bytes_up, question.bytes_down
            emit(
                {
                    "status": "ok",
                    "model": found.name,
                    "rows": rows,
                    "columns": list(predictor.columns),
                    "out": out,
                    "bytes_sent": sent,
                    "bytes_received": got,
                }
            )
        else:
            say(f"{rows} predictions in {out}")


def _server(text: str) -> tuple[str, str]:
    """Name and address of NAME=HOST:PORT."""
    match = _SERVER.match(text)
    if match is None or not 0 < int(match[2].rpartition(":")[2]) <= 65535:
        raise typer.BadParameter(f"--server {text}: write NAME=HOST:PORT")
    return match[1], f"tcp://{match[2]}"


def _expected(model: str) -> "Description | None":
    """The description in a file; None if `model` is a name."""
    from mpc_train.errors import QueryError
    from mpc_train.homomorphic.description import MAX_DESCRIPTION_BYTES, Description
    from parties.files import read_bounded
    from protocols.names import NAME

    if NAME.match(model):
        return None
    try:
        return Description.read(read_bounded(Path(model), MAX_DESCRIPTION_BYTES))
    except OSError as error:
        raise ConfigError(
            f"{model}: is neither a model's name (a-z, 0-9 and -) nor a file that can be read "
            f"({error.strerror})"
        ) from error
    except (ValueError, QueryError) as error:
        raise ArtifactError(f"{model}: {error}") from error


def _key(node: "OpenedNode", seal: "Seal") -> "KeyPair":
    """The newest key pair of the vault. Raises ConfigError where there is none."""
    from mpc_train.homomorphic.keys import KeyPair
    from mpc_train.node.storage import KEY

    if not node.store.versions(KEY, KEY_NAME):
        raise ConfigError(
            f"{node.config.path}: its vault has no key for questions; make one: mpc-train he keys"
        )
    with node.store.open(KEY, KEY_NAME) as content:
        data = content.reader.read()
    try:
        return KeyPair.of(seal, data)
    except ArtifactError as error:
        raise ArtifactError(f"vault: the key {KEY_NAME}: {error}") from error


def _line(node: "OpenedNode", server: str, address: str) -> "ServerLine":
    """A connection to the server, with the keys of this node and of the roster."""
    from mpc_train.commands.serving.connections import ServerLine
    from parties.keys import lifetime
    from parties.keys.roster import Roster

    moment = lifetime.now()
    lifetime.check_own(node.identity.card, moment)
    peer = Roster.load(node.config.place.roster).card(server)
    lifetime.check_peer(peer, moment)
    line = ServerLine(node.identity, peer, address)
    try:
        line.connect()
    except BaseException:
        line.close()
        raise
    return line


def _tell(found: "Description", output: Format) -> None:
    job = found.job
    columns = [{"name": each.name, "kind": job.schema[each.name].kind} for each in job.features]
    if output is Format.json:
        emit(
            {
                "status": "ok",
                "model": found.name,
                "digest": found.digest.hex(),
                "kind": job.model.kind,
                "label": job.label.name,
                "columns": columns,
            }
        )
        return
    say(f"{found.name}: {job.model.kind} model of {job.label.name}, {found.digest.hex()}")
    for each in columns:
        say(f"  {each['name']} ({each['kind']})")
    count = len(found.columns.names)
    say(f"A question of up to 4096 rows takes {count} ciphertexts, {count * 0.344:.1f} MB")
