"""Where the address and the password of a node's proxy come from."""

from pathlib import Path

import pytest

from mpc_train.commands.common import proxy_of
from mpc_train.errors import ConfigError
from mpc_train.run.node_config import load_node_config
from mpc_train.run.place import ENVIRONMENT, ProxyPlace
from parties.errors import PassphraseError
from tests.support.http_proxy import HttpProxy
from tests.support.node_files import party_toml


@pytest.fixture(autouse=True)
def no_proxy_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def opened(place: ProxyPlace, user: str, password: str) -> None:
    """Opens a tunnel through a proxy that accepts these alone."""
    with HttpProxy({"study.invalid": "tcp://127.0.0.1:1"}, user=user, password=password) as there:
        proxy = proxy_of(place)
        assert proxy is not None and password not in repr(proxy) + repr(place)
        proxy.port = there.port
        with pytest.raises(Exception, match=r"\(502\)"):  # behind the password
            proxy.open("study.invalid", 7700, 5.0)


def test_the_password_comes_from_the_file_that_the_node_s_file_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pale ale\n")
    (tmp_path / "secret").chmod(0o600)
    text = party_toml() + (
        '[network]\nproxy = "http://ann%40clinic@127.0.0.1:3128"\nproxy_password_file = "secret"\n'
    )
    (tmp_path / "party.toml").write_text(text)
    place = load_node_config(tmp_path / "party.toml").proxy
    assert place is not None
    opened(place, "ann@clinic", "pale ale")
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(PassphraseError, match=r"password of the proxy: .*others may read it"):
        proxy_of(place)


def test_without_a_file_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ProxyPlace("http://ann@127.0.0.1:3128")
    with pytest.raises(PassphraseError, match="no terminal to ask for it; proxy_password_file"):
        proxy_of(place)
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return "pale ale"

    monkeypatch.setattr("getpass.getpass", answer)
    opened(place, "ann", "pale ale")
    assert prompts == ["Password of ann at the proxy http://127.0.0.1:3128: "]


def test_the_environment_is_used_only_if_the_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_of(ProxyPlace(ENVIRONMENT)) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:pale%20ale@127.0.0.1:3128")
    monkeypatch.setenv("NO_PROXY", "localhost, .clinic.example,10.0.0.0/8")
    assert proxy_of(None) is None
    opened(ProxyPlace(ENVIRONMENT), "ann", "pale ale")
    proxy = proxy_of(ProxyPlace(ENVIRONMENT, direct=("other.example",)))
    assert proxy is not None
    hosts = ("a.clinic.example", "10.1.2.3", "other.example", "study.example")
    assert [proxy.covers(host) for host in hosts] == [False, False, False, True]


@pytest.mark.parametrize("url", ["https://ann:secret@proxy:1", "http://ann:secret@proxy"])
def test_a_proxy_of_the_environment_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("https_proxy", url)
    with pytest.raises(ConfigError, match=r"HTTPS_PROXY or NO_PROXY: .*http://") as caught:
        proxy_of(ProxyPlace(ENVIRONMENT))
    assert "secret" not in str(caught.value)
