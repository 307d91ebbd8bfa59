"""Coverage-guided fuzzing of every parser of the table, with Atheris (libFuzzer) where it is there.

    python -m tests.fuzz.guided --minutes 5 [--only KIND]

Each parser gets the same share of the time, in a process of its own whose memory is limited, and
begins with what is whole. Whatever a parser raises besides its named errors, an input that takes
longer than a few seconds or more memory than the limit, is printed with the input, and the exit
status is 1. Atheris has wheels for Linux and Python 3.11 to 3.13; elsewhere this says so and ends.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

TIMEOUT_S = 20
"""For one input."""
MEMORY_MIB = 2048
"""Of a process, with everything that it imports."""
LONGEST_BYTES = 1 << 16
INSTRUMENTED = ["protocols", "parties", "mpc_train"]
COMPILED = [
    "protocols.ring.kernels",
    "protocols.ring.tiles",
    "mpc_train.admission.effective_rows",
]
"""numba compiles these, and knows no instrumented code."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", action="append", help="this parser alone; repeatable")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed here: python -m pip install atheris; nothing was fuzzed")
        return 0
    instrumented = atheris.instrument_imports(include=INSTRUMENTED, exclude=COMPILED)
    with contextlib.redirect_stderr(io.StringIO()), instrumented:  # it names each module
        from tests.fuzz import logs
        from tests.fuzz.table import PARSERS
    logs.ann()  # the same in all processes, which share a log and a vault
    kinds = options.only or list(PARSERS)
    seconds = max(1, round(options.minutes * 60 / len(kinds)))
    failed = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            status, runs = _fuzzed(kind, seconds, Path(folder))
        print(f"{'ok' if status == 0 else 'FAILED':7} {kind:30} {runs:>9,} inputs", flush=True)
        if status:
            failed.append(kind)
    print(f"{len(kinds)} parsers, {seconds} s each: {len(failed)} failed {failed or ''}")
    return 1 if failed else 0


def _fuzzed(kind: str, seconds: int, folder: Path) -> tuple[int, int]:
    """The exit status of the process that tries one parser, and how many inputs it tried."""
    counted = folder / "count"
    said = folder / "said"
    child = os.fork()
    if child == 0:
        try:
            with said.open("wb") as out:
                os.dup2(out.fileno(), 2)
                os.dup2(out.fileno(), 1)
            _fuzz(kind, seconds, folder, counted)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # the folders are the parent's
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    if status:
        text = said.read_text(errors="replace")
        print(text[-6000:])
        for left in folder.glob("input-*"):
            print(f"{kind}: {left.read_bytes()[:2000]!r}")
    runs = int(counted.read_text()) if counted.exists() else 0
    return status, runs


def _fuzz(kind: str, seconds: int, folder: Path, counted: Path) -> None:
    import atheris

    from tests.fuzz.table import PARSERS

    parser = PARSERS[kind]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, whole in enumerate(parser.seeds):
        (corpus / str(number)).write_bytes(whole[:LONGEST_BYTES])
    runs, noted = 0, time.monotonic()

    def one(data: bytes) -> None:
        nonlocal runs, noted
        runs += 1
        if time.monotonic() - noted > 0.5:
            noted = time.monotonic()
            counted.write_text(str(runs))
        try:
            parser.parse(data)
        except parser.errors:
            return

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-timeout={TIMEOUT_S}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-max_len={LONGEST_BYTES}",
            f"-artifact_prefix={folder}/input-",
            "-verbosity=0",
            str(corpus),
        ],
        one,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    raise SystemExit(main())
