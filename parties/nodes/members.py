"""The roster of a node or a coordinator while it runs: who is succeeded, revoked or expires.

Follows successions that come over the control plane, each verified from the card that this node
knows, and keeps them in the roster's file, so that no operator has to copy one. Notices, by looking
at the file's dates every few seconds, what an operator changes beside the running process: a card
that is no longer accepted ends the run, with an error that names it. Safe to call from any thread;
never called by the thread that computes.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from parties.audit.entries import Kind, Value
from parties.errors import CardError, ExpiredError, PartiesError, RevokedError, RosterError
from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.statements import Succession
from parties.keys.vault import Vault

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""The interval at which the roster's files are looked at; only their names and dates are read."""

MAX_CHAINS_BYTES = 3 << 20
"""Of successions in one message, which has at most `control.MAX_MESSAGE_BYTES`."""

Note = Callable[[Kind, Mapping[str, Value]], None]


class Members:
    """The cards that this node accepts. note: writes the audit log."""

    def __init__(self, roster: Roster, identity: Vault, note: Note) -> None:
        self._lock = threading.RLock()
        self._note = note
        self._me = identity.card.name
        self._in_use: dict[str, Card] = {}
        self._next_look = 0.0
        self.roster = roster
        self._seen = _state_of(roster.source)
        self._take_own(identity)

    def _take_own(self, identity: Vault) -> None:
        """After a rotation this node's own roster may still have its old card."""
        card, chain = identity.card, identity.successions
        with self._lock:
            known = self.roster.card(self._me) if self._me in self.roster else None
            if known is not None and chain and known.digest != card.digest:
                self._change(lambda roster: roster.own(card, chain))

    def _change(self, change: Callable[[Roster], Roster]) -> None:
        """Change the roster here and in its file; what cannot be written holds for this process."""
        self.roster = change(self.roster)
        if self.roster.source is None:
            return
        try:
            Roster.update(self.roster.source, change)
        except PartiesError as error:
            log.warning("%s; the new card is used in this run only", error)
        self._seen = _state_of(self.roster.source)

    def own(self, identity: Vault) -> None:
        """Take this node's own successor into its roster."""
        self._take_own(identity)

    def follow(self, name: str, texts: Iterable[str], by: str) -> bool:
        """Take over the successions of `name` that `by` sent; whether its card has changed.

        Successions that this node knows already change nothing. Raises CardError, RosterError,
        RevokedError and ExpiredError, logged, for what is not believed; then nothing is changed.
        """
        try:
            chain = [Succession.from_text(text, f"{by}, successions of {name}") for text in texts]
            if any(each.name != name for each in chain):
                raise CardError(f"{by} sent successions of others as those of {name}")
            moment = lifetime.now()
            with self._lock:
                before = self.roster
                after = before.follow(chain, moment)
                if after == before:
                    return False
                self._change(lambda roster: roster.follow(chain, moment))
        except (CardError, RosterError) as error:
            self._note(Kind.SUCCESSION_REFUSED, {"node": name, "by": by, "code": error.code})
            raise
        old, new = before.card(name), after.card(name)
        fields: dict[str, Value] = {
            "node": name,
            "before": old.fingerprint,
            "after": new.fingerprint,
            "sequence": new.sequence,
        }
        self._note(Kind.PEER_ROTATED, fields)
        log.info("%s has new keys: %s succeeds %s", name, new.fingerprint, old.fingerprint)
        return True

    def chains(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """By name, the successions that led to the present card, as texts; the newest ones if all
        do not fit a message."""
        with self._lock:
            known = {name: self.roster.successions(name) for name in names}
        for newest in (8, 3, 1):
            texts = {
                name: tuple(each.to_text() for each in chain[-newest:])
                for name, chain in known.items()
                if chain
            }
            if sum(len(text) for chain in texts.values() for text in chain) <= MAX_CHAINS_BYTES:
                return texts
        return {}

    def use(self, cards: Iterable[Card]) -> None:
        """From now on `check` watches over these cards."""
        with self._lock:
            self._in_use = {card.name: card for card in cards}
            self._next_look = 0.0

    def use_successor(self, card: Card) -> None:
        """From now on `check` watches over this card instead of the one that it succeeded."""
        with self._lock:
            self._in_use[card.name] = card

    def check(self) -> None:
        """Look whether all cards in use are still accepted; at most every `LOOK_S`.

        Raises RevokedError or ExpiredError, with the name in `about`.
        """
        if time.monotonic() < self._next_look:
            return
        with self._lock:
            self._next_look = time.monotonic() + LOOK_S
            self._reload()
            moment = lifetime.now()
            for name, card in self._in_use.items():
                try:
                    self._check_one(name, card)
                    own = name == self._me
                    (lifetime.check_own if own else lifetime.check_peer)(card, moment)
                except (RevokedError, ExpiredError) as error:
                    error.about = name
                    self._note(Kind.PEER_REVOKED, {"node": name, "code": error.code})
                    raise

    def not_accepted(self, names: Iterable[str]) -> dict[str, CardError | RosterError]:
        """Of these, by name, who has no card that is accepted now because it was revoked or has
        expired, and why."""
        found: dict[str, CardError | RosterError] = {}
        with self._lock:
            roster = self.roster
        for name in sorted(names):
            try:
                lifetime.check_peer(roster.card(name), lifetime.now())
            except (RevokedError, ExpiredError) as error:
                found[name] = error
                self._note(Kind.PEER_REVOKED, {"node": name, "code": error.code})
                log.warning("%s is not served, and others are: %s", name, error)
        return found

    def check_client(self, card: Card) -> None:
        """Raise RevokedError or ExpiredError unless this card is accepted now; what an operator has
        changed in the roster is known after the next `check`."""
        with self._lock:
            self._check_one(card.name, card)
        lifetime.check_peer(card, lifetime.now())

    def _check_one(self, name: str, card: Card) -> None:
        if card.digest in {each.digest for each in self.roster.line(name)}:
            return
        try:
            self.roster.card(name)
        except RevokedError:
            raise
        except RosterError:
            pass
        raise RevokedError(f"the card of {name} was removed from this node's roster")

    def _reload(self) -> None:
        state = _state_of(self.roster.source)
        if state == self._seen or self.roster.source is None:
            return
        try:
            self.roster = Roster.load(self.roster.source)
        except RosterError as error:
            # Somebody may be writing it just now: look again.
            log.warning("%s; this run goes on with the roster as it was", error)
            return
        self._seen = state


def _state_of(source: Path | None) -> tuple[object, ...]:
    """Names, dates and sizes of a roster's files; nothing of what is not there."""
    if source is None:
        return ()
    found = []
    try:
        directory = source if source.is_dir() else source.parent
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith((".card", ".toml")):
                    info = entry.stat()
                    found.append((entry.name, info.st_mtime_ns, info.st_size, info.st_ino))
    except OSError as error:
        return (error.errno,)
    return tuple(sorted(found))
