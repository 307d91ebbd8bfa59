"""Reading and sharing a large table: seconds, CPU time and memory of each process.

    .venv/bin/python tests/bench/table.py --rows 1000000 --columns 100
    .venv/bin/python tests/bench/table.py --rows 1000000 --columns 100 --share

The first writes a table of random numbers, one column in ten a category, as CSV and as Parquet into
a temporary directory and loads each in a process of its own. The second runs a whole job, one epoch
of logistic regression, in which one owner has all rows but a thousand: two evaluators and a dealer.
The last line is a JSON object.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mpc_train.tables.loading.load import load  # noqa: E402
from mpc_train.tables.reading import Progress  # noqa: E402
from mpc_train.tables.schema import Column, Schema  # noqa: E402
from mpc_train.tables.source import Source  # noqa: E402

FORMATS = ("csv", "parquet")
ROWS_AT_ONCE = 50_000
LEVELS = ("north", "south", "east", "west")


def schema(columns: int) -> Schema:
    return Schema(
        tuple(
            Column(f"c{number}", "category", levels=LEVELS, missing=("",))
            if number % 10 == 9
            else Column(f"c{number}", "number", missing=("",))
            for number in range(columns)
        )
    )


def write(folder: Path, rows: int, columns: int) -> None:
    """The same table in each format; one cell in fifty is missing."""
    generator = np.random.default_rng(11)
    parts = []
    with (folder / "table.csv").open("wb") as csv:
        for at in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - at)
            frame = polars.DataFrame(
                {
                    f"c{number}": polars.Series(generator.choice(LEVELS, count))
                    if number % 10 == 9
                    else polars.Series(generator.normal(50, 10, count).round(4))
                    for number in range(columns)
                }
            ).with_columns(
                polars.when(polars.Series(generator.random(count) < 0.02))
                .then(None)
                .otherwise(polars.all())
                .name.keep()
            )
            frame.write_csv(csv, include_header=at == 0)
            part = folder / f"part{at}.parquet"
            frame.write_parquet(part)
            parts.append(part)
    polars.scan_parquet(parts).sink_parquet(folder / "table.parquet")
    for part in parts:
        part.unlink()


def peak_mb() -> int:
    """Largest resident size of this program; getrusage counts what started it as well."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(line) * 1024 / 1e6)


def measure(path: Path, rows: int, columns: int) -> dict[str, Any]:
    """Load in this process."""
    news: list[Progress] = []
    before = peak_mb()
    started, cpu = time.perf_counter(), time.process_time()
    wanted = schema(columns)
    table = load(Source(str(path)), wanted, names=wanted.names, rows=rows, progress=news.append)
    return {
        "file_mb": round(path.stat().st_size / 1e6),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "table_mb": round((table.values.nbytes + table.missing.nbytes) / 1e6),
        "peak_rss_mb": peak_mb(),
        "rss_before_mb": before,
        "news": len(news),
    }


JOB = """
[job]
name = "large"
owners = ["large", "small"]
dealer = "registry"
recipients = ["small"]

[data]
features = [{features}]
label = "label"
rows = {{ large = {large}, small = {small} }}
test_fraction = 0.02

[model]
kind = "logistic"

[train]
epochs = 1
batch_size = {batch}
optimizer = {{ name = "sgd", learning_rate = 4 }}
"""
SMALL = 1_000


def write_job(folder: Path, rows: int, columns: int) -> Path:
    """A job over CSV files of standard normal numbers and a label."""
    generator = np.random.default_rng(12)
    (folder / "data").mkdir()
    names = [f"c{number}" for number in range(columns)]
    for owner, count in (("large", rows - SMALL), ("small", SMALL)):
        with (folder / "data" / f"{owner}.csv").open("wb") as csv:
            for at in range(0, count, ROWS_AT_ONCE):
                size = min(ROWS_AT_ONCE, count - at)
                cells = generator.normal(0, 1, (size, columns)).clip(-8, 8).round(4)
                label = (cells.sum(axis=1) > 0).astype(np.int64)
                frame = polars.DataFrame(cells, schema=names).with_columns(label=label)
                frame.write_csv(csv, include_header=at == 0)
    path = folder / "job.toml"
    features = ", ".join(f'"{name}"' for name in names)
    batch = min(4096, rows // 4)
    path.write_text(JOB.format(features=features, large=rows - SMALL, small=SMALL, batch=batch))
    return path


def share(folder: Path, rows: int, columns: int) -> dict[str, Any]:
    """Run a whole job and return what it says of itself."""
    path = write_job(folder, rows, columns)
    command = [sys.executable, str(ROOT / "launch.py"), str(path), "--format", "json"]
    started = time.perf_counter()
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    record = json.loads(shown.splitlines()[-1])
    kept = ("steps", "train_seconds", "bytes_sent", "peak_rss_mb")
    found = {key: record[key] for key in kept}
    return {"seconds": round(time.perf_counter() - started, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--share", action="store_true", help="run a job, and not only read")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(measure(arguments.only, arguments.rows, arguments.columns)))
        return
    found: dict[str, Any] = {"rows": arguments.rows, "columns": arguments.columns}
    with tempfile.TemporaryDirectory() as name:
        if arguments.share:
            found |= share(Path(name), arguments.rows, arguments.columns)
            print(json.dumps(found))
            return
        write(Path(name), arguments.rows, arguments.columns)
        for kind in FORMATS:
            command = [sys.executable, __file__, "--only", str(Path(name) / f"table.{kind}")]
            command += ["--rows", str(arguments.rows), "--columns", str(arguments.columns)]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[kind] = json.loads(shown.splitlines()[-1])
            print(f"{kind}: {found[kind]}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
