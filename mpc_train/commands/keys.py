"""`mpc-train identity …`, `roster …` and `keys …`: this node's keys, the cards of others, and the
services that keep the vault's keys."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    Format,
    FormatOption,
    HomeOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    find_name,
    home_of,
    identity_at,
    reporting,
)
from mpc_train.errors import EXIT_STATUS

if TYPE_CHECKING:
    from parties.keys.identity import Card
    from parties.keys.roster import Roster

identity = typer.Typer(no_args_is_help=True, help="This node's own keys.")
roster = typer.Typer(
    no_args_is_help=True, help="The public cards of all organisations that this node accepts."
)
keys = typer.Typer(no_args_is_help=True, help="Services that keep the vault's keys.")

NameArgument = Annotated[
    str | None, typer.Argument(help="Name of the identity; may be omitted if there is only one.")
]
RosterOption = Annotated[
    Path | None,
    typer.Option("--roster", help="Directory or .toml file; default: roster in the home."),
]


@identity.command("new")
def identity_new(
    name: Annotated[str, typer.Argument(help="Name of this node: a-z, 0-9 and -.")],
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Make keys, encrypt the private ones under a passphrase, and print the fingerprint."""
    with reporting(output):
        from parties.errors import IdentityError
        from parties.keys.passphrase import read_passphrase
        from parties.keys.roster import Roster
        from parties.keys.vault import FileVault, card_path, identity_path

        folder = home_of(home, make=True)
        path = identity_path(folder, name)
        if path.exists():
            raise IdentityError(f"{path}: exists; an identity is never overwritten")
        passphrase = read_passphrase(
            file=passphrase_file, fd=passphrase_fd, prompt="New passphrase: ", confirm=True
        )
        card = FileVault.create(folder, name, passphrase).card
        # A node's own card belongs in its roster, because the node takes part in its jobs.
        Roster.load(folder / "roster", missing_ok=True).add(card).save(folder / "roster")
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": name,
                    "fingerprint": card.fingerprint,
                    "identity": str(path),
                    "card": str(card_path(folder, name)),
                }
            )
            return
        say(f"Made {path}")
        say(f"Card {card_path(folder, name)}: send it to the others, and tell them over another")
        say(f"channel the fingerprint  {card.fingerprint}")


@identity.command("card")
def identity_card(
    name: NameArgument = None, home: HomeOption = None, output: FormatOption = Format.text
) -> None:
    """Print the public card, which the others need."""
    with reporting(output):
        from parties.keys.vault import identity_path, read_card

        folder = home_of(home)
        card = read_card(identity_path(folder, find_name(folder, name)))
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": card.name,
                    "fingerprint": card.fingerprint,
                    "card": card.to_text(),
                }
            )
            return
        say(card.to_text(), end="")


@identity.command("show")
def identity_show(
    name: NameArgument = None, home: HomeOption = None, output: FormatOption = Format.text
) -> None:
    """Show name, fingerprint and date of an identity."""
    with reporting(output):
        from parties.keys.vault import identity_path, read_card

        folder = home_of(home)
        path = identity_path(folder, find_name(folder, name))
        card = read_card(path)
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": card.name,
                    "fingerprint": card.fingerprint,
                    "created": card.created,
                    "identity": str(path),
                }
            )
            return
        say(f"{card.name}  made {card.created}\n{card.fingerprint}\n{path}")


@roster.command("add")
def roster_add(
    cards: Annotated[list[Path], typer.Argument(help="Card files of others.")],
    home: HomeOption = None,
    file: RosterOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Accept new keys for a known name.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask, because the fingerprints have been compared.")
    ] = False,
    output: FormatOption = Format.text,
) -> None:
    """Show the fingerprints of cards, ask, and accept all of them or none."""
    with reporting(output):
        from parties.keys.identity import Card
        from parties.keys.roster import Roster

        place = file or home_of(home) / "roster"
        known = before = Roster.load(place, missing_ok=True)
        added = [Card.load(path) for path in cards]
        for card in added:
            known = known.add(card, replace=replace)
        new = [card for card in added if card.name not in before or before.card(card.name) != card]
        if output is Format.text:
            say("Compare each fingerprint with its owner, by telephone or in person:")
            for card in added:
                say(f"  {card.name:20} {card.fingerprint}{_remark(card, before)}")
        if new and not yes:
            _ask(f"Accept {', '.join(card.name for card in new)}?", output)
        known.save(place)
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "roster": str(place),
                    "added": {card.name: card.fingerprint for card in added},
                }
            )
            return
        say(f"Accepted in {place}" if new else f"Nothing to do: all cards are in {place} already")


def _remark(card: "Card", before: "Roster") -> str:
    """A remark on the card that the roster already has under this name."""
    if card.name not in before:
        return ""
    known = before.card(card.name)
    return "  known already" if known == card else f"\n  {'instead of':20} {known.fingerprint}"


def _ask(question: str, output: Format) -> None:
    """Return if somebody at the terminal says yes; otherwise raise RosterError and store
    nothing."""
    from parties.errors import RosterError

    if output is Format.json or not sys.stdin.isatty():
        raise RosterError(
            "nothing was changed: there is no terminal to ask at; after the fingerprints have been "
            "compared, run the command again with --yes"
        )
    if not typer.confirm(question, default=False):
        raise RosterError("nothing was changed")


@roster.command("remove")
def roster_remove(
    names: Annotated[list[str], typer.Argument(help="Names whose cards are no longer accepted.")],
    home: HomeOption = None,
    file: RosterOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: FormatOption = Format.text,
) -> None:
    """Stop accepting cards. Removes all of them, or none if a name is unknown."""
    with reporting(output):
        from parties.keys.roster import Roster

        place = file or home_of(home) / "roster"
        known = Roster.load(place)
        gone = [known.card(name) for name in dict.fromkeys(names)]
        if output is Format.text:
            for card in gone:
                say(f"  {card.name:20} {card.fingerprint}")
        if not yes:
            _ask(f"Remove {', '.join(card.name for card in gone)}?", output)
        for card in gone:
            Roster.forget(place, card.name)
        if output is Format.json:
            removed = {card.name: card.fingerprint for card in gone}
            emit({"status": "ok", "roster": str(place), "removed": removed})
            return
        say(f"Removed from {place}")


@roster.command("show")
def roster_show(
    home: HomeOption = None, file: RosterOption = None, output: FormatOption = Format.text
) -> None:
    """List the accepted cards and their fingerprints."""
    with reporting(output):
        from parties.keys.roster import Roster

        place = file or home_of(home) / "roster"
        known = Roster.load(place)
        if output is Format.json:
            cards = {card.name: card.fingerprint for card in known}
            emit({"status": "ok", "roster": str(place), "cards": cards})
            return
        for card in known:
            say(f"{card.name:20} {card.fingerprint}  {card.created}")


@keys.command("doctor")
def keys_doctor(
    uri: Annotated[str, typer.Argument(metavar="URI", help="As [vault] key names it.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="This node's own file (TOML), for identity:.")
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="Read the service's passphrase, token or PIN from this file."),
    ] = None,
    output: FormatOption = Format.text,
) -> None:
    """Try whether a key can wrap and unwrap, refuses a wrong use, and could be rotated.

    Nothing is kept and nothing is rotated. A key that cannot be rotated is reported; the command
    fails only for what keeping and opening objects needs.
    """
    with reporting(output):
        from mpc_train.node.storage import open_key
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.place import KeyPlace
        from parties.errors import KeyServiceError
        from parties.keys.services.by_uri import check_uri
        from parties.keys.services.doctor import examine

        identity = None
        if config is not None:
            node = load_node_config(config)
            if uri == "identity:":
                identity = identity_at(node.place, node.audit, None, None)
            for known in (node.vault.key, *node.vault.columns.values()):
                if passphrase_file is None and uri == known.uri:
                    passphrase_file = known.passphrase_file
        place = KeyPlace(uri, passphrase_file)
        if check_uri(uri):
            open_key(place, identity)  # raises, and does not quote what may be a secret
        findings = examine(lambda: open_key(place, identity))
        failed = [finding for finding in findings if finding.needed and not finding.ok]
        if output is Format.json:
            emit(
                {
                    "status": KeyServiceError.__name__ if failed else "ok",
                    **({"code": KeyServiceError.code} if failed else {}),
                    "key": uri,
                    "checks": [dataclasses.asdict(finding) for finding in findings],
                }
            )
        else:
            for finding in findings:
                said = "ok" if finding.ok else f"no: {finding.problem}"
                say(f"{finding.name:22} {finding.seconds * 1000:8.1f} ms  {said}")
        if failed:
            raise typer.Exit(EXIT_STATUS["VaultError"])
