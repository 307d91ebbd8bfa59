"""From identifiers to tokens: keyed hashes of fixed length, in which form alone they leave the
loader.

A token is HMAC-SHA256 of the normalised identifiers of a row, each with its length, under a key
that follows from the job. Anybody who has the job can test guessed identifiers against tokens, so
tokens stay in the process of the node that made them: before they are sent they are hashed again
under a key that only the holders of the session make (`protocols.linkage.intersection`). Neither
identifiers nor tokens are ever written to a file, a log or an error.

Their order is the same at all holders; joined rows have this order if holders learn which they are.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mpc_train.tables.dates import DateForm
from mpc_train.tables.normalise import Rule, normaliser
from protocols.canonical import pack

TOKEN_BYTES = 32

Tokens = NDArray[np.uint8]

_KEY_LABEL = b"mpc-train identifier key v1"


class IdentifierError(Exception):
    """A fault of the identifiers of row `row`, from 0; `other`: an earlier row that it involves."""

    def __init__(self, row: int, column: str, what: str, other: int | None = None) -> None:
        super().__init__(what)
        self.row, self.column, self.other = row, column, other


def token_key(job_digest: bytes) -> bytes:
    """The key of a job's tokens, the same for everybody who has the job."""
    return hashlib.sha256(pack(_KEY_LABEL, job_digest)).digest()


def spelt(name: str, cells: Sequence[str], rules: Sequence[Rule], form: DateForm) -> Iterator[str]:
    """The cells of one column in normalised spelling (`normalise`); `form`: that of dates.

    Raises IdentifierError at the first cell that is empty or cannot be normalised.
    """
    function = normaliser(rules, form)
    for row, cell in enumerate(cells):
        try:
            yield function(cell)
        except ValueError as error:
            raise IdentifierError(row, name, str(error)) from None


def tokens_of(
    identifiers: Mapping[str, Sequence[str]],
    on: Sequence[str],
    rules: Mapping[str, Sequence[Rule]],
    date_form: Callable[[str], DateForm],
    key: bytes,
) -> Tokens:
    """A token for each row, uint8[rows, 32], from the columns `on`, in this order.

    date_form: how the dates of a column are written.

    Raises IdentifierError at the first row with a cell that is empty or cannot be normalised, or
    with the identifiers of an earlier row.
    """
    columns = [spelt(name, identifiers[name], rules.get(name, ()), date_form(name)) for name in on]
    found = bytearray()
    first: dict[bytes, int] = {}
    for row, cells in enumerate(zip(*columns, strict=True)):
        fields = [text.encode("utf-8", "surrogatepass") for text in cells]
        token = hmac.digest(key, pack(*fields), "sha256")
        other = first.setdefault(token, row)
        if other != row:
            raise IdentifierError(row, on[0], "identifies the same record as an earlier row", other)
        found += token
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, TOKEN_BYTES)
