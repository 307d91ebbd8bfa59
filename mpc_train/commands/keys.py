"""`mpc-train identity …`, `roster …` and `keys …`: this node's keys, the cards of others, and the
services that keep the vault's keys."""

import dataclasses
import sys
from enum import StrEnum
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
    open_vault,
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
DEFAULT_DAYS, MAX_DAYS = 730, 1826
"""As in `parties.keys.lifetime`, which is not loaded for --help."""
DaysOption = Annotated[
    int, typer.Option("--days", min=1, max=MAX_DAYS, help="How long the keys are valid.")
]


class RecipientKind(StrEnum):
    """As in `protocols.sealing.recipient_keys`, which is not loaded for --help."""

    hybrid = "x25519-mlkem768"
    p384 = "p384"
    rsa = "rsa-4096-oaep"


RecipientKeyOption = Annotated[
    RecipientKind,
    typer.Option(
        "--recipient-key",
        help="The key that models are sealed to; only the default is post-quantum.",
    ),
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
    days: DaysOption = DEFAULT_DAYS,
    recipient_key: RecipientKeyOption = RecipientKind.hybrid,
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
        card = FileVault.create(folder, name, passphrase, days=days, kind=recipient_key.value).card
        # A node's own card belongs in its roster, because the node takes part in its jobs.
        Roster.load(folder / "roster", missing_ok=True).add(card).save(folder / "roster")
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": name,
                    "fingerprint": card.fingerprint,
                    "expires": card.expires,
                    "identity": str(path),
                    "card": str(card_path(folder, name)),
                }
            )
            return
        say(f"Made {path}, valid until {card.expires}")
        say(f"Card {card_path(folder, name)}: send it to the others, and tell them over another")
        say(f"channel the fingerprint  {card.fingerprint}")


def _state(card: "Card") -> str:
    """A remark on a card that has expired, or will soon."""
    from parties.errors import ExpiredError
    from parties.keys import lifetime

    moment = lifetime.now()
    try:
        lifetime.check_peer(card, moment)
    except ExpiredError:
        return "  NOT VALID NOW"
    return "  expires soon" if lifetime.expiring(card, moment) else ""


@identity.command("card")
def identity_card(
    name: NameArgument = None,
    home: HomeOption = None,
    succession: Annotated[
        bool,
        typer.Option(
            "--succession",
            help="The statement by which the previous keys made these their successor, instead.",
        ),
    ] = False,
    output: FormatOption = Format.text,
) -> None:
    """Print the public card, which the others need."""
    with reporting(output):
        from parties.errors import IdentityError
        from parties.keys.vault import identity_path, read_line

        folder = home_of(home)
        card, chain = read_line(identity_path(folder, find_name(folder, name)))
        if succession and not chain:
            raise IdentityError(f"{card.name} has never been rotated: there is no succession")
        text = chain[-1].to_text() if succession else card.to_text()
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": card.name,
                    "fingerprint": card.fingerprint,
                    "succession" if succession else "card": text,
                }
            )
            return
        say(text, end="")


@identity.command("rotate")
def identity_rotate(
    name: NameArgument = None,
    home: HomeOption = None,
    days: DaysOption = DEFAULT_DAYS,
    new_connection_key: Annotated[
        bool,
        typer.Option(
            "--new-connection-key",
            help="Replace the key of the connections as well; others must add the new card first.",
        ),
    ] = False,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Make new keys for an identity; the present ones sign that these take their place.

    What was sealed to the old keys can still be opened. The passphrase stays.
    """
    with reporting(output):
        from parties.keys.roster import Roster

        folder = home_of(home)
        me = find_name(folder, name)
        before = open_vault(folder, me, passphrase_file, passphrase_fd)
        after = before.rotate(days, new_connection_key=new_connection_key)
        # It is this node's own card: nobody's fingerprint has to be compared.
        Roster.update(folder / "roster", lambda known: known.own(after.card, after.successions))
        card = after.card
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": me,
                    "before": before.card.fingerprint,
                    "fingerprint": card.fingerprint,
                    "sequence": card.sequence,
                    "expires": card.expires,
                    "identity": str(after.path),
                }
            )
            return
        say(f"{me} has new keys, valid until {card.expires}")
        say(f"  before  {before.card.fingerprint}\n  now     {card.fingerprint}")
        say("Nodes learn of them when this node next takes part in a job. Give others, such as")
        say("recipients without a node, what this prints:  mpc-train identity card --succession")
        if new_connection_key:
            say("This node's next connection is refused until they have added that.")
        say("A statement of revocation that you keep for the old card does not cover the new one.")


@identity.command("revoke")
def identity_revoke(
    name: NameArgument = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: in the home.")
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Sign a statement that nobody may accept this card any more.

    It has no effect until others get it, so it can be made in advance and kept in a safe place.
    Whoever has it can put this identity out of use.
    """
    with reporting(output):
        from parties.errors import IdentityError
        from parties.files import write_atomic
        from parties.keys import lifetime
        from parties.keys.identity import reason
        from parties.keys.statements import Revocation

        folder = home_of(home)
        me = find_name(folder, name)
        vault = open_vault(folder, me, passphrase_file, passphrase_fd)
        target = out or folder / f"{me}.{vault.card.sequence}.revocation"
        statement = Revocation.sign(vault, lifetime.now())
        try:
            write_atomic(target, statement.to_text().encode(), 0o600, replace=False)
        except OSError as error:
            raise IdentityError(f"{target}: cannot be written: {reason(error)}") from error
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "name": me,
                    "fingerprint": vault.card.fingerprint,
                    "statement": str(target),
                }
            )
            return
        say(f"Wrote {target}, about {vault.card.fingerprint}")
        say(f"It takes effect where it is used:  mpc-train roster revoke {me} --statement FILE")


@identity.command("show")
def identity_show(
    name: NameArgument = None, home: HomeOption = None, output: FormatOption = Format.text
) -> None:
    """Show name, fingerprint and lifetime of an identity."""
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
                    "sequence": card.sequence,
                    "issued": card.issued,
                    "expires": card.expires,
                    "identity": str(path),
                }
            )
            return
        say(f"{card.name}  valid from {card.issued} to {card.expires}{_state(card)}")
        say(f"{card.fingerprint}\n{path}")


@roster.command("add")
def roster_add(
    cards: Annotated[list[Path], typer.Argument(help="Cards or successions of others.")],
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
    """Show the fingerprints of cards, ask, and accept all of them or none.

    A succession replaces a known card without a question: the known card has signed it.
    """
    with reporting(output):
        from parties.keys import lifetime
        from parties.keys.identity import Card
        from parties.keys.roster import Roster
        from parties.keys.statements import Succession, is_succession

        place = file or home_of(home) / "roster"
        before = Roster.load(place, missing_ok=True)
        moment = lifetime.now()
        chains = [Succession.load(path) for path in cards if is_succession(path)]
        chains.sort(key=lambda each: (each.name, each.new.sequence))
        added = [Card.load(path) for path in cards if not is_succession(path)]

        def accepting(known: "Roster") -> "Roster":
            for card in added:
                lifetime.check_peer(card, moment)
                known = known.add(card, replace=replace)
            for each in chains:
                known = known.follow([each], moment)
            return known

        after = accepting(before)
        new = [card for card in added if card.name not in before or before.card(card.name) != card]
        if output is Format.text:
            if added:
                say("Compare each fingerprint with its owner, by telephone or in person:")
            for card in added:
                say(f"  {card.name:20} {card.fingerprint}{_remark(card, before)}")
            for each in chains:
                say(f"  {each.name:20} {each.new.fingerprint}  signed by the card before it,")
                say(f"  {'':20} {each.old.fingerprint}")
        if new and not yes:
            _ask(f"Accept {', '.join(card.name for card in new)}?", output)
        changed = after != before
        if changed:
            Roster.update(place, accepting)
        if output is Format.json:
            names = [*(card.name for card in added), *(each.name for each in chains)]
            accepted = {name: after.card(name).fingerprint for name in names}
            emit({"status": "ok", "roster": str(place), "added": accepted})
            return
        done = f"Accepted in {place}"
        say(done if changed else f"Nothing to do: all cards are in {place} already")


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


_BY = {"owner": "its owner", "operator": "this node"}


@roster.command("revoke")
def roster_revoke(
    name: Annotated[str, typer.Argument(help="Whose card is no longer accepted.")],
    statement: Annotated[
        Path | None,
        typer.Option(help="The owner's own statement; without it, this node decides for itself."),
    ] = None,
    home: HomeOption = None,
    file: RosterOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: FormatOption = Format.text,
) -> None:
    """Stop accepting a card for good: it cannot be added again, and runs that use it end.

    Tell the others: this roster is only this node's.
    """
    with reporting(output):
        from parties.errors import RosterError
        from parties.keys import lifetime
        from parties.keys.roster import Roster
        from parties.keys.statements import Revocation

        place = file or home_of(home) / "roster"
        moment = lifetime.now()
        if statement is None:
            card, by = Roster.load(place).card(name), "this node"
        else:
            card, by = Revocation.load(statement).card, "its owner"
            if card.name != name:
                raise RosterError(f"{statement}: is about {card.name}, not {name}")
        if output is Format.text:
            say(f"  {card.name:20} {card.fingerprint}")
        if not yes:
            _ask(f"Never accept this card of {name} again?", output)
        kind = "operator" if statement is None else "owner"
        Roster.update(place, lambda known: known.revoke(card, moment, by=kind))
        if output is Format.json:
            revoked = {card.name: card.fingerprint}
            emit({"status": "ok", "roster": str(place), "revoked": revoked, "by": kind})
            return
        say(f"Revoked in {place}, by {by}; nodes and coordinators that are running notice it")


@roster.command("show")
def roster_show(
    home: HomeOption = None, file: RosterOption = None, output: FormatOption = Format.text
) -> None:
    """List the accepted cards, their fingerprints, and when they expire."""
    with reporting(output):
        from parties.keys.roster import Roster

        place = file or home_of(home) / "roster"
        known = Roster.load(place)
        if output is Format.json:
            cards = {card.name: card.fingerprint for card in known}
            expire = {card.name: card.expires for card in known}
            gone = [dataclasses.asdict(each) for each in known.revoked]
            emit(
                {
                    "status": "ok",
                    "roster": str(place),
                    "cards": cards,
                    "expires": expire,
                    "revoked": gone,
                }
            )
            return
        for card in known:
            say(f"{card.name:20} {card.fingerprint}  expires {card.expires}{_state(card)}")
        for each in known.revoked:
            say(f"{each.name:20} {each.fingerprint}  REVOKED {each.on}, by {_BY[each.by]}")


@keys.command("doctor")
def keys_doctor(
    uri: Annotated[str, typer.Argument(metavar="URI", help="As \\[vault] key names it.")],
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
