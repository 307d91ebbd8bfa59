"""What the services behind a client library share."""

import pytest

from parties.errors import KeyServiceError
from parties.keys.services import client
from parties.keys.services.client import Problem, Unusable, asked, imported, split_query
from tests.support.key_contract import refused


def test_a_library_that_is_missing_names_its_extra() -> None:
    said = refused(lambda: imported("no_such_library", "aws", "aws-kms:alias/vault"))
    assert "aws-kms:alias/vault needs" in said and "pip install 'mpc-train[aws]'" in said


class _Failing:
    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_S", 0.0)


def explain(error: Exception) -> Problem | None:
    return Problem("of a kind", isinstance(error, TimeoutError)) if str(error) else None


def test_what_passes_is_asked_again_a_few_times() -> None:
    call = _Failing(TimeoutError("slow"), TimeoutError("slow"))
    assert asked("u:", "ask", call, explain) == "done" and call.calls == 3
    call = _Failing(*[TimeoutError("slow")] * 9)
    assert refused(lambda: asked("u:", "ask", call, explain)) == "u:: cannot ask: of a kind"
    assert call.calls == client.ATTEMPTS
    call = _Failing(*[TimeoutError("slow")] * 9)
    refused(lambda: asked("u:", "ask", call, explain, attempts=1))
    assert call.calls == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no"), "of a kind"),
        (KeyError(), "cannot be read (KeyError)"),
        (Unusable("too short"), "cannot be used: too short"),
        (Unusable("long " * 9999), "cannot be used: " + "long " * 40 + "…"),
        (KeyServiceError("of its own"), "of its own"),
    ],
)
def test_what_does_not_pass_is_asked_once(error: Exception, said: str) -> None:
    call = _Failing(*[error] * 9)
    assert said in refused(lambda: asked("u:", "ask", call, explain))
    assert call.calls == 1


def test_a_mask_hides_a_key_and_is_bound() -> None:
    key, info = bytes(range(32)), b"use"
    masks = [client.Mask.new(info) for _ in range(3)]
    assert len({mask.applied(key) for mask in masks} | {mask.bound for mask in masks}) == 6
    for mask in masks:
        _, wrapped = mask.kept("id", b"sealed")
        again, sealed = client.Mask.split(wrapped, info)
        assert sealed == b"sealed" and again.applied(mask.applied(key)) == key
        assert again.bound == mask.bound != client.Mask.split(wrapped, info + b".")[0].bound
        altered = bytes([wrapped[0] ^ 1]) + wrapped[1:]
        assert client.Mask.split(altered, info)[0].bound != mask.bound
        assert mask.pad.hex() not in repr(mask)
    for wrong in (b"", bytes(31), bytes(33), "key", None):
        with pytest.raises(Unusable):
            masks[0].applied(wrong)
    for unusable in (b"", bytes(1 << 15), None):
        with pytest.raises(Unusable):
            masks[0].kept("id", unusable)


def test_settings_behind_a_uri() -> None:
    assert split_query("a/b", ("ca",)) == ("a/b", {})
    assert split_query("a?ca=/x%20y", ("ca",)) == ("a", {"ca": "/x y"})
    for wrong in ("a?ca=", "a?ca", "a?ca=x", "a?ca=/x&ca=/y", "a?verify=0"):
        with pytest.raises(ValueError):
            split_query(wrong, ("ca",))
