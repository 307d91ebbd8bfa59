"""What nodes sign: one meaning for the bytes, and no run unless all signatures fit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.agreement.contract import (
    SESSION_PURPOSE,
    Acceptance,
    Contract,
    Roles,
    describe_trust,
    resumed_from,
    session_statement,
    verify_acceptances,
    verify_session,
)
from parties.errors import ContractError
from protocols.sealing.signatures import SigningKeys

ROLES = Roles(("ann", "bob", "cleo"), ("ann", "bob"), "cleo", ("office",))
CONTRACT = Contract.of("a study", ROLES, b"body", bytes(32))
KEYS = {name: SigningKeys.generate() for name in ("ann", "bob", "cleo")}
PUBLIC = {name: keys.public for name, keys in KEYS.items()}
CONSTANTS = bytes(32)


def accept(name: str, constants: bytes = CONSTANTS, contract: Contract = CONTRACT) -> Acceptance:
    nonce = name.encode().ljust(32, b"\0")
    return Acceptance.sign(contract, name, nonce, constants, KEYS[name])


ACCEPTED = {name: accept(name) for name in KEYS}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dealer": "ann"}, "ann cannot both deal and evaluate"),
        ({"evaluators": ("ann",)}, "at least two evaluators"),
        ({"evaluators": ("ann", "ann")}, "twice"),
        ({"owners": ()}, "needs owners"),
        ({"recipients": (), "threshold": 2}, "2 of 0 recipients"),
        ({"dealer": "../cleo"}, "not a name"),
        ({"dealer": ""}, "not a name"),
        ({"recipients": ("Office",)}, "not a name"),
    ],
)
def test_roles_that_would_not_be_private_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        replace(ROLES, **change).check()  # type: ignore[arg-type]


def test_neighbours_and_titles() -> None:
    roles = Roles(("ann", "bob", "dan", "eve"), ("bob", "ann"), "cleo", ("dan",))
    assert roles.nodes == ("ann", "bob", "cleo", "dan", "eve")
    assert roles.neighbours("ann") == ("bob", "cleo", "dan", "eve")
    assert roles.neighbours("cleo") == roles.neighbours("dan") == ("ann", "bob")
    assert roles.title("bob") == "evaluator 0, owner"
    assert roles.title("dan") == "owner, recipient"


def test_the_statement_of_trust_names_everybody() -> None:
    text = describe_trust(ROLES)
    for name in ROLES.names:
        assert name in text
    assert "cleo together with any one of them" in text
    assert "model is sealed to office, who learn" in text
    assert "Up to 2 evaluators together" in describe_trust(
        Roles(("ann",), ("ann", "bob", "dan"), "cleo", ("ann",))
    )


def test_a_contract_is_read_as_it_was_written() -> None:
    assert Contract.from_bytes(CONTRACT.to_bytes()) == CONTRACT
    roles = replace(ROLES, recipients=("office", "ann", "bob"), threshold=2)
    contract = Contract.of("a study", roles, b"body", bytes(32))
    assert Contract.from_bytes(contract.to_bytes()) == contract
    alone = Contract.of("a study", replace(roles, threshold=1), b"body", bytes(32))
    assert contract.digest != alone.digest


def test_a_model_that_nobody_opens_has_no_recipients() -> None:
    roles = replace(ROLES, recipients=())
    contract = Contract.of("a study", roles, b"body", bytes(32))
    assert Contract.from_bytes(contract.to_bytes()) == contract
    assert "The model is sealed to nobody" in describe_trust(roles)


def test_a_threshold_is_in_the_statement_of_trust() -> None:
    text = describe_trust(replace(ROLES, recipients=("office", "ann", "bob"), threshold=2))
    assert "sealed to office, ann, bob so that 2 of them together can open it" in text
    assert "Fewer than 2 of them learn nothing" in text


@given(st.binary(max_size=300))
def test_foreign_bytes_are_no_contract(data: bytes) -> None:
    with pytest.raises(ContractError):
        Contract.from_bytes(data)


@given(st.integers(0, len(CONTRACT.to_bytes()) - 1), st.integers(1, 255))
def test_no_altered_byte_goes_unnoticed(position: int, change: int) -> None:
    data = bytearray(CONTRACT.to_bytes())
    data[position] ^= change
    try:
        contract = Contract.from_bytes(bytes(data))
    except ContractError:
        return
    assert contract.digest() != CONTRACT.digest()


def test_another_version_or_body_is_refused() -> None:
    with pytest.raises(ContractError, match="version 1, this node 7"):
        replace(CONTRACT, version=1).check(b"body")
    with pytest.raises(ContractError, match="not the one in the contract"):
        CONTRACT.check(b"other")


def test_all_acceptances_give_all_nodes_one_session() -> None:
    sids = {verify_acceptances(CONTRACT, ACCEPTED[name], ACCEPTED, PUBLIC) for name in KEYS}
    assert len(sids) == 1


def test_our_own_nonce_must_be_in_the_session() -> None:
    with pytest.raises(ContractError, match="not those of the job's nodes"):
        verify_acceptances(CONTRACT, replace(ACCEPTED["ann"], nonce=bytes(32)), ACCEPTED, PUBLIC)


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        (replace(ACCEPTED["bob"], nonce=bytes(32)), "bob did not sign"),
        (replace(ACCEPTED["bob"], constants=b"c" * 32), "bob did not sign"),
        (replace(ACCEPTED["bob"], signature=ACCEPTED["ann"].signature), "bob did not sign"),
        (replace(ACCEPTED["bob"], signature=b""), "bob did not sign"),
        # The coordinator would choose the state from which a run goes on, or that it begins anew.
        (replace(ACCEPTED["bob"], held=(b"older",)), "bob did not sign"),
        (replace(ACCEPTED["bob"], insists=True), "bob did not sign"),
        (ACCEPTED["cleo"], "in place of bob"),
        (accept("bob", contract=replace(CONTRACT, name="another")), "bob did not sign"),
        (accept("bob", constants=b"c" * 32), "constants differ: bob has 6363.*, ann 0000"),
    ],
)
def test_an_acceptance_that_does_not_fit_is_refused(forged: Acceptance, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        verify_acceptances(CONTRACT, ACCEPTED["ann"], {**ACCEPTED, "bob": forged}, PUBLIC)


def test_everybody_signs_the_same_session() -> None:
    sid = verify_acceptances(CONTRACT, ACCEPTED["ann"], ACCEPTED, PUBLIC)
    logs = {name: f"checkpoint of {name}".encode() for name in KEYS}
    signed = {
        name: keys.sign(SESSION_PURPOSE, session_statement(CONTRACT, sid, name, logs[name]))
        for name, keys in KEYS.items()
    }
    verify_session(CONTRACT, sid, signed, logs, PUBLIC)
    other = KEYS["bob"].sign(
        SESSION_PURPOSE, session_statement(CONTRACT, bytes(32), "bob", logs["bob"])
    )
    older = {**logs, "bob": b"an older checkpoint"}
    with pytest.raises(ContractError, match="bob did not sign this session"):
        verify_session(CONTRACT, sid, signed, older, PUBLIC)
    with pytest.raises(ContractError, match=r"ann did not sign this session"):
        verify_session(CONTRACT, sid, signed, logs, PUBLIC, b"a state that nobody signed")
    for wrong in ({**signed, "bob": other}, {"ann": signed["ann"]}):
        with pytest.raises(ContractError, match="bob did not sign this session"):
            verify_session(CONTRACT, sid, wrong, logs, PUBLIC)


def test_the_newest_state_that_all_evaluators_hold_is_gone_on_from() -> None:
    def holding(**held: tuple[bytes, ...]) -> dict[str, Acceptance]:
        return {name: replace(one, held=held.get(name, ())) for name, one in ACCEPTED.items()}

    evaluators = CONTRACT.roles.evaluators
    all_hold = dict.fromkeys(evaluators, (b"1", b"2"))
    assert resumed_from(CONTRACT, holding(**all_hold)) == b"2"
    ahead = all_hold | {evaluators[0]: (b"1", b"2", b"3")}
    assert resumed_from(CONTRACT, holding(**ahead)) == b"2"
    assert resumed_from(CONTRACT, holding(**(all_hold | {evaluators[-1]: ()}))) == b""
    # What the dealer says that it holds counts for nothing.
    others = {name: (b"9",) for name in CONTRACT.roles.nodes if name not in evaluators}
    assert resumed_from(CONTRACT, holding(**(all_hold | others))) == b"2"
