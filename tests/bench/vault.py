"""The vault's cost: bytes per second of sealing and opening, and of loading a table from it.

    .venv/bin/python tests/bench/vault.py --mb 1024 --rows 1000000 --columns 100

First an object of random bytes is sealed into a file and opened again. Then the table of `table.py`
is imported, as CSV and as Parquet, and loaded by turns from its file and from the vault, each time
in a new process. The last line is a JSON object; ratios compare processor times of this run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mpc_train.node.storage import TABLE, NodeVault  # noqa: E402
from mpc_train.run.place import KeyPlace, VaultPlace  # noqa: E402
from mpc_train.tables.loading.load import load, open_table  # noqa: E402
from mpc_train.tables.readers.staged import stage  # noqa: E402
from mpc_train.tables.source import Source  # noqa: E402
from parties.keys.services.file_service import FileService  # noqa: E402
from parties.keys.vault import MemoryVault  # noqa: E402
from parties.vault.store import Store  # noqa: E402
from protocols.sealing.stream import (  # noqa: E402
    KEY_BYTES,
    OpeningReader,
    SealingWriter,
    sealed_bytes,
)
from tests.bench.table import FORMATS, schema, write  # noqa: E402

PIECE_BYTES = 1 << 20
PASSPHRASE = b"of the benchmark"


def throughput(megabytes: int, file: BinaryIO) -> dict[str, float]:
    """GB of plaintext per second of processor time, sealed to `file` and opened from it."""
    key, piece = os.urandom(KEY_BYTES), os.urandom(PIECE_BYTES)
    started = time.process_time()
    writer = SealingWriter(file, key)
    for _ in range(megabytes):
        writer.write(piece)
    writer.finish()
    sealed = time.process_time() - started
    started, buffer = time.process_time(), bytearray(PIECE_BYTES)
    reader = OpeningReader(file, key, 0, sealed_bytes(megabytes * PIECE_BYTES))
    while reader.readinto(buffer):
        pass
    opened = time.process_time() - started
    size = megabytes * PIECE_BYTES / 1e9
    return {"seal_gb_per_s": round(size / sealed, 2), "open_gb_per_s": round(size / opened, 2)}


def store_at(folder: Path) -> Store:
    path = folder / "vault.keys"
    make = FileService if path.exists() else FileService.create
    return Store(folder / "vault", "bench", make(path, PASSPHRASE))


def vault_at(folder: Path) -> NodeVault:
    """The same, as a node opens it."""
    secret = folder / "passphrase"
    secret.touch(0o600)
    secret.write_bytes(PASSPHRASE)
    key = KeyPlace(f"file:{folder / 'vault.keys'}", secret)
    place = VaultPlace(folder / "vault", key, {})
    return NodeVault(place, "bench", MemoryVault.generate("bench"))


def measure(folder: Path, kind: str, rows: int, columns: int) -> dict[str, Any]:
    """Load the table in this process."""
    wanted = schema(columns)
    stored = kind.startswith("vault:")
    source = Source(kind if stored else str(folder / f"table.{kind}"))
    vault = vault_at(folder).tables([kind.removeprefix("vault:")]) if stored else None
    started, cpu = time.perf_counter(), time.process_time()
    load(source, wanted, names=wanted.names, rows=rows, vault=vault)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def compared(folder: Path, kind: str, rows: int, columns: int) -> dict[str, Any]:
    """Import the table of a format, then load it from its file and from the vault by turns."""
    source = Source(str(folder / f"table.{kind}"))
    started = time.process_time()
    with open_table(source) as table, store_at(folder).writing(TABLE, kind) as out:
        stage(table, source, out, lambda done: None)
    found: dict[str, Any] = {"import_cpu_seconds": round(time.process_time() - started, 2)}
    for _ in range(2):
        for name in (kind, f"vault:{kind}"):
            command = [sys.executable, __file__, "--rows", str(rows), "--columns", str(columns)]
            command += ["--only", str(folder), name]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.setdefault(name, []).append(json.loads(shown))
    file, vault = (min(run["cpu_seconds"] for run in found[n]) for n in (kind, f"vault:{kind}"))
    return found | {"vault_to_file": round(vault / file, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mb", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = (arguments.rows, arguments.columns)
    if arguments.only is not None:
        print(json.dumps(measure(Path(arguments.only[0]), arguments.only[1], *size)))
        return
    found: dict[str, Any] = {"mb": arguments.mb, "rows": arguments.rows}
    found["columns"] = arguments.columns
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "object").open("w+b") as file:
            found |= throughput(arguments.mb, file)
        (folder / "object").unlink()
        write(folder, *size)
        for kind in FORMATS:
            found[kind] = compared(folder, kind, *size)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
