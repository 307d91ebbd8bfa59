"""A recipient opens what was sealed before its keys, or those of an evaluator, were rotated."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpc_train.commands.open import open_file
from mpc_train.results import opening
from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from protocols.errors import EnvelopeError

ANN, BOB = MemoryVault.generate("ann"), MemoryVault.generate("bob")


@pytest.mark.parametrize("sealed_to", [0, 1, 2])
def test_each_card_of_the_recipient_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed_to: int
) -> None:
    second = ANN.successor()
    third = second.successor()
    roster = Roster.of([ANN.card, BOB.card]).follow(third.successions, lifetime.now())
    wanted = [ANN, second, third][sealed_to].card
    tried = []

    def open_model(blob: bytes, *, cards: Mapping[str, Card], **_: object) -> SimpleNamespace:
        tried.append(cards["ann"].sequence)
        if cards["ann"].recipient_key != wanted.recipient_key:
            raise EnvelopeError("an envelope for another key of ann")
        for one in (ANN, second, third):
            cards["ann"].verifier().verify("p", b"m", one.sign("p", b"m"))
        assert cards["bob"].recipient_key == BOB.card.recipient_key
        return SimpleNamespace(files={"manifest.json": b"{}"})

    monkeypatch.setattr(opening, "open_model", open_model)
    (tmp_path / "model.sealed").write_bytes(b"x")
    open_file(tmp_path / "model.sealed", third, roster, tmp_path / "out")
    assert tried == [2, 1, 0][: 3 - sealed_to]
    with pytest.raises(EnvelopeError, match="another key"):
        stranger = MemoryVault.generate("ann")
        open_file(tmp_path / "model.sealed", stranger, Roster.of([stranger.card]), tmp_path / "o")
