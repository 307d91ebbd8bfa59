"""Whether an audit log is what its node signed, and what others hold of it; no key is needed.

1. Its records hang together (`reading`): each is intact, and follows the one before it.
2. Its own newest checkpoint verifies against the card, and its root is that of so many entries.
3. The same of each checkpoint that others hold of it: their logs, or single notes.
4. A second log of the same origin is the same as far as both go: otherwise they are a fork.
5. Checkpoints that this log holds of others agree with their logs, where these are given.
6. Where the node's identity was rotated, the log holds the successions, each signed by the old and
   the new keys; each identity signs only until the entry of its own succession.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from parties.audit import merkle
from parties.audit.checkpoint import Checkpoint, origin_of, read_checkpoint, verify_by_line
from parties.audit.reading import (
    CHECKPOINT,
    KEY,
    RECORDS,
    Fault,
    Log,
    public_of,
    read_log,
    received,
    shown_root,
)
from parties.errors import AuditError, AuditTamperedError, CardError
from parties.files import read_bounded
from parties.keys.identity import Card, reason
from parties.keys.statements import Succession, check_chain

WHOLE = -1
MAX_FILE_BYTES = 1 << 18
MAX_ENTRIES = 1 << 62


@dataclass
class Report:
    """faults: empty where all is well. checked: which checkpoints were compared, in words."""

    origin: str = ""
    size: int = 0
    root: str = ""
    checked: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def signed(self) -> int:
        """How many entries a checkpoint covers that holds. Those behind them may be of a node that
        is running, or of anybody who can write to the file: without a key nobody can tell."""
        return max(self.agreed, default=0)

    agreed: list[int] = field(default_factory=list)
    """Sizes of checkpoints that hold."""
    differing: list[tuple[int, str]] = field(default_factory=list)
    """Sizes of those that do not, and who holds them."""

    def add(self, what: str, entry: int = WHOLE) -> None:
        self.faults.append(Fault(entry, what))


@dataclass(frozen=True)
class _Line:
    """The identities of a log, the oldest first. limits: how long the log may be in a checkpoint
    that each of them signs."""

    cards: tuple[Card, ...]
    limits: tuple[int, ...]

    def verify(self, note: bytes) -> Checkpoint:
        """Raises AuditTamperedError."""
        found, card = verify_by_line(note, self.cards[::-1])
        limit = self.limits[self.cards.index(card)]
        if found.size > limit:
            raise AuditTamperedError(
                f"card {card.sequence} of {card.name} signed {found.size} entries, and was "
                f"succeeded at entry {limit}"
            )
        return found


def _line_of(
    log: Log, card: Card, later: Sequence[Succession], report: Report
) -> _Line | None:  # 6
    """The line of a log; None, and a fault, where it is not that of `card`."""
    found: list[tuple[int, Succession]] = []
    for number, record in enumerate(log.records):
        try:
            text = public_of(record).succession
            if text:
                found.append((number, Succession.from_text(text, "the succession")))
        except (AuditTamperedError, CardError) as error:
            report.add(f"holds a succession that is forged or altered: {error}", number)
            return None
    known = {each.new.digest for _, each in found}
    found += [(len(log.records), each) for each in later if each.new.digest not in known]
    try:
        check_chain([each for _, each in found], "the log")
    except CardError as error:
        report.add(str(error))
        return None
    cards = (found[0][1].old, *(each.new for _, each in found)) if found else (card,)
    if card.digest not in {each.digest for each in cards}:
        report.add(
            f"is signed by cards {cards[0].sequence} to {cards[-1].sequence} of {cards[0].name}, "
            f"and the card that was given is another one: {card.fingerprint}"
        )
        return None
    return _Line(cards, (*(number for number, _ in found), MAX_ENTRIES))


def verify_log(
    folder: Path, card: Card, against: tuple[Path, ...] = (), later: Sequence[Succession] = ()
) -> Report:
    """Check a log against any card of its line, and against what others hold of it.

    later: successions that the log may not know yet. Raises AuditError for what cannot be read at
    all; whatever is wrong stands in the report."""
    report = Report()
    try:
        log = read_log(folder)
    except AuditTamperedError as error:
        report.add(str(error))
        return report
    report.origin, report.size = log.origin, len(log.records)
    report.root = shown_root(merkle.root(log.leaves))
    report.faults += log.faults  # 1
    if log.torn is not None:
        report.add(
            "is incomplete: the log ends inside it, as after a crash; the next start of the node "
            "cuts it off",
            len(log.records),
        )
    if log.origin != origin_of(card):
        report.add(f"is the log {log.origin}, and the card is of {origin_of(card)}")
        return report
    line = _line_of(log, card, later, report)
    if line is None:
        return report
    _check_own(folder, log, line, report)
    _check_key(folder, log, report)
    _others_of(log, report)
    for path in against:
        _check_against(path, log, line, report)
    for size, holder in report.differing:
        first = max((each for each in report.agreed if each < size), default=0)
        which = (
            f"entry {first}" if first == size - 1 else f"one of the entries {first} to {size - 1}"
        )
        report.add(
            f"{which} is not the one that the signed checkpoint of {size} entries covers, which "
            f"{holder} holds: it was exchanged"
        )
    return report


def _check_own(folder: Path, log: Log, line: _Line, report: Report) -> None:  # 2
    path = folder / CHECKPOINT
    if not path.exists():
        report.add(f"{path}: is gone; a log has one from its beginning")
        return
    faults = len(report.faults)
    _compare(_read(path), "this node", log, line, report)
    if len(report.faults) > faults and len(line.cards) == 1 and line.cards[0].sequence:
        card = line.cards[0]
        report.add(
            f"holds no succession to the card that was given, which is number {card.sequence} of "
            f"{card.name}: if the keys were rotated since the node last wrote, give the card before"
        )


def _check_key(folder: Path, log: Log, report: Report) -> None:
    """The file with the wrapped key is the one that the log says it is."""
    said = ""
    for number, record in enumerate(log.records):
        try:
            said = public_of(record).key_file or said
        except AuditTamperedError as error:
            report.add(str(error), number)
    if said and sha256(_read(folder / KEY)).hexdigest() != said:
        report.add(
            f"{folder / KEY}: is not the file that the log speaks of: altered, or put back, or a "
            "rotation broke off"
        )


def _compare(note: bytes, holder: str, log: Log, line: _Line, report: Report) -> None:
    """A checkpoint of this log that somebody holds."""
    try:
        found = line.verify(note)
    except AuditTamperedError as error:
        report.add(f"a checkpoint held by {holder} is forged or altered: {error}")
        return
    if found.size > len(log.records):
        report.add(
            f"is missing: {holder} holds a signed checkpoint of {found.size} entries",
            len(log.records),
        )
    elif merkle.root(log.leaves[: found.size]) != found.root:
        report.differing.append((found.size, holder))
    else:
        report.agreed.append(found.size)
        report.checked.append(f"{found.size} entries, held by {holder}")


def _check_against(path: Path, log: Log, line: _Line, report: Report) -> None:
    if not path.is_dir():
        _compare(_read(path), str(path), log, line, report)
        return
    try:
        other = read_log(path)
        held = received(other)
        mine = received(log)
    except AuditTamperedError as error:
        report.add(f"{path}: {error}")
        return
    for fault in other.faults:
        report.add(f"{path}: {fault}")
    if other.origin == log.origin:  # 4
        _compare_logs(path, log, other, report)
        return
    found = [(note, number) for number, note, said in held if said.origin == log.origin]
    for note, number in found:  # 3
        _compare(note, f"{path}, entry {number}", log, line, report)
    if not found:
        report.checked.append(f"{path} holds no checkpoint of this log")
    for number, _, said in mine:  # 5
        if said.origin == other.origin:
            same = said.size <= len(other.records)
            if not same or merkle.root(other.leaves[: said.size]) != said.root:
                report.add(
                    f"is a checkpoint of {said.size} entries of {said.node}, from which {path} "
                    "does not go on",
                    number,
                )


def _compare_logs(path: Path, log: Log, other: Log, report: Report) -> None:
    for number, (ours, theirs) in enumerate(zip(log.leaves, other.leaves, strict=False)):
        if ours != theirs:
            report.add(f"is another one in {path}: the log was forked there", number)
            return
    report.checked.append(f"{min(len(log.leaves), len(other.leaves))} entries, the same in {path}")


def _others_of(log: Log, report: Report) -> None:
    """Checkpoints of others that this log holds are notes, and those of one log do not shrink."""
    longest: dict[str, tuple[int, bytes]] = {}
    for number, record in enumerate(log.records):
        try:
            text = public_of(record).checkpoint
        except AuditTamperedError:
            continue  # `_check_key` has said so
        if not text:
            continue
        try:
            said = read_checkpoint(text.encode())
        except AuditTamperedError as error:
            report.add(f"holds a checkpoint of another log that is malformed: {error}", number)
            continue
        size, root = longest.get(said.origin, (0, b""))
        if said.size < size or (said.size == size and root not in (b"", said.root)):
            report.add(f"holds a checkpoint of {said.node} that contradicts an earlier one", number)
        longest[said.origin] = (said.size, said.root)


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise AuditError(f"{path}: cannot be read: {reason(error)}") from error


def is_log(folder: Path) -> bool:
    return (folder / RECORDS).exists()
