"""Messages that claim much, and rosters that are none: one of our errors, at once.

`tests/fuzz` tries every parser with drawn and mutated bytes.
"""

from pathlib import Path

import pytest

from parties.agreement import control
from parties.errors import CardError, ControlError, RosterError
from parties.keys.identity import Card
from parties.keys.roster import Roster


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 2^32 entries
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xc6\xff\xff\xff\xff",  # as many bytes
        b"\x81\xa1t\xdb\xff\xff\xff\xff",
        b"\x91" * 200_000,  # lists in lists
        b"\x81\xa1t" * 50_000,
        b"\x81\xa1t\xa4done" + bytes(5 << 20),
    ],
    ids=["list", "map", "bytes", "text", "deep", "deep maps", "long"],
)
def test_a_message_that_claims_much_is_refused_at_once(data: bytes) -> None:
    for decode in (control.decode_from_node, control.decode_from_coordinator):
        with pytest.raises(ControlError):
            decode(data, "bob")


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 100_000,
        "a = 1" + "0" * 100_000,
        'card = "text"',
        "card = [1, 2]",
        "version = 1\n[[card]]\nname = 1",
        "\x00\x1b[31m",
        "x = 1\n" * 10_000,
    ],
)
def test_a_roster_that_is_none_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(content)
    with pytest.raises(RosterError, match=r"roster\.toml"):
        Roster.load(path)
    with pytest.raises(CardError):
        Card.from_text(content)
