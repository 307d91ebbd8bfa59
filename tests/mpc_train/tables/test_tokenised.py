"""Identifiers as tokens: the same for the same identifier, and of no use without the key."""

import hmac
from pathlib import Path

import polars
import pytest

from mpc_train.errors import DataError
from mpc_train.tables.loading.load import open_table
from mpc_train.tables.readers.tokenised import Tokenised
from mpc_train.tables.source import Source

KEY = bytes(range(32))


def tokens(path: Path, key: bytes = KEY, column: str = "id") -> list[str]:
    with open_table(Source(str(path))) as table:
        named = Tokenised(table, [column], key)
        return [cell for chunk in named.chunks(named.names) for cell in chunk.frame[column]]


def csv(folder: Path, *cells: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text("id,x\n" + "".join(f"{cell},{row}\n" for row, cell in enumerate(cells)))
    return path


def test_a_token_is_the_keyed_hash_of_the_identifier(tmp_path: Path) -> None:
    found = tokens(csv(tmp_path, "1042", "p-7", "1042"))
    by_hand = hmac.digest(KEY, b"mpc-train/token/1\x001042", "sha256").hex()[:32]
    assert found[0] == found[2] == by_hand
    assert found[1] != found[0]
    assert tokens(csv(tmp_path, "1042"), bytes(32)) != [by_hand]


def test_spellings_of_one_identifier_have_one_token(tmp_path: Path) -> None:
    found = tokens(csv(tmp_path, "1042", " 1042 ", "1042.0", "01042", "Zoe\u0308", "Zo\u00eb"))
    assert len(set(found[:3])) == 1
    assert found[3] not in found[:3]
    assert found[4] == found[5]
    path = tmp_path / "t.parquet"
    polars.DataFrame({"id": [1042.0], "x": [1]}).write_parquet(path)
    assert tokens(path) == found[:1]


def test_empty_cells_stay_empty_and_other_columns_stay_as_they_are(tmp_path: Path) -> None:
    path = csv(tmp_path, "a", "", "  ")
    assert tokens(path)[1:] == ["", ""]
    with open_table(Source(str(path))) as table:
        (chunk,) = Tokenised(table, ["id"], KEY).chunks(("x",))
        assert chunk.frame["x"].to_list() == ["0", "1", "2"]


def test_columns_that_cannot_be_tokenised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: there is no column 'Id'"):
        tokens(csv(tmp_path, "a"), column="Id")
    path = tmp_path / "t.parquet"
    polars.DataFrame({"id": [1.0, 2.5], "x": [1, 2]}).write_parquet(path)
    with pytest.raises(DataError, match="row 2: column 'id': a number with a fraction"):
        tokens(path)
