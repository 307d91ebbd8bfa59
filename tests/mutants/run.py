"""Apply each mutant of `mutants.toml` to a copy of the repository and run the tests that notice it.

python -m tests.mutants.run [--jobs N] [--list] [WORD …]

First the tests themselves pass on an unchanged copy. Then each mutant (or those whose name or file
has one of the words) is applied to a fresh copy in a temporary directory and its tests are run,
slow ones left out, until one fails: KILLED. SURVIVED: all passed, a test is missing. BROKEN: the
tests could not be run at all, the mutant is no program. The working tree is never written to.

Copies keep the times of files, so that what Python and numba have compiled is used again; only a
file that a mutant changes is compiled anew. Ends with 1 unless all mutants were killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.toml")
COPIED = ("protocols", "parties", "mpc_train", "tests", "examples")
ALONE = ("launch.py", "pyproject.toml", "README.md", ".gitignore")
TIMEOUT_S = 900
TESTS_FAILED, NO_TESTS = 1, 5


@dataclass(frozen=True)
class Edit:
    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """`text` with the edit. Raises ValueError unless `old` stands there exactly once."""
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.file}: {count} times instead of once: {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutant:
    """why: what is lost with it. tests: files or single tests, as pytest takes them."""

    name: str
    why: str
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(edit.file for edit in self.edits))

    def texts(self, root: Path) -> dict[str, str]:
        """The files that it changes, changed."""
        found = {name: (root / name).read_text() for name in self.files}
        for edit in self.edits:
            found[edit.file] = edit.applied(found[edit.file])
        return found


def read_mutants(path: Path = LIST) -> list[Mutant]:
    """Raises TypeError for a key that none has: it is that of an entry whose `[[mutant]]` is
    missing, and which would be another's edit."""
    return [
        Mutant(
            edits=tuple(Edit(**edit) for edit in entry.pop("edit")),
            tests=tuple(entry.pop("tests")),
            **entry,
        )
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]


def copy_tree(target: Path) -> None:
    """The repository's files with their times and with what is compiled of them."""
    for name in COPIED:
        # Runs of examples are no part of the repository; `tests/runs` is.
        runs = ("runs",) if name == "examples" else ()
        left_out = shutil.ignore_patterns(*runs, ".hypothesis", "*.tmp")
        shutil.copytree(ROOT / name, target / name, ignore=left_out, copy_function=shutil.copy2)
    for name in ALONE:
        shutil.copy2(ROOT / name, target / name)


def apply(mutant: Mutant, root: Path) -> None:
    """Write the changed files, younger than before, so that nothing compiled stands for them."""
    for name, text in mutant.texts(root).items():
        path = root / name
        before = path.stat()
        path.write_text(text)
        os.utime(path, (before.st_atime, before.st_mtime + 2))


def run_tests(tests: Sequence[str], root: Path) -> tuple[int, str]:
    """pytest's exit status and the last of what it said."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not slow and not timed"]
    argv = [sys.executable, "-m", "pytest", *options, *tests]
    ended = subprocess.run(
        argv,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    lines = ended.stdout.splitlines()
    said = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    return ended.returncode, said or "\n".join(lines[-15:])


def check_place(root: Path) -> None:
    """The copy's own modules are the ones that its tests import."""
    code = "import protocols, parties, mpc_train as m\nprint(protocols.__path__, m.__path__)"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    argv = [sys.executable, "-c", code]
    said = subprocess.run(
        argv, cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    if said.stdout.count(str(root)) != 2:
        raise RuntimeError(f"the copy in {root} is not what is imported: {said.stdout}")


def outcome(mutant: Mutant) -> tuple[str, str]:
    """KILLED, SURVIVED or BROKEN, and by what."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder).resolve()
        copy_tree(root)
        apply(mutant, root)
        for name in mutant.tests:
            status, said = run_tests([name], root)
            if status == TESTS_FAILED:
                return "KILLED", said
            if status:
                return "BROKEN", said
    return "SURVIVED", f"{', '.join(mutant.tests)} passed"


def passes_unchanged(mutants: Sequence[Mutant]) -> bool:
    """Whether all tests that are named pass without any mutant: else a failure says nothing."""
    tests = list(dict.fromkeys(name for mutant in mutants for name in mutant.tests))
    with tempfile.TemporaryDirectory(prefix="mutant-none-") as folder:
        root = Path(folder).resolve()
        copy_tree(root)
        check_place(root)
        status, said = run_tests(tests, root)
    print(f"unchanged: {'passed' if not status else said}", flush=True)
    return not status


def report(mutant: Mutant, *, started: float) -> bool:
    began = time.monotonic()
    found, said = outcome(mutant)
    now = time.monotonic()
    print(f"{found:9}{mutant.name} ({now - began:.0f} s, {now - started:.0f} s in all)", flush=True)
    print(f"{'':9}{said if found == 'KILLED' else f'{mutant.why}: {said}'}", flush=True)
    return found == "KILLED"


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.mutants.run")
    options.add_argument("words", nargs="*", help="only mutants whose name or file has one of them")
    options.add_argument("--jobs", type=int, default=1, help="so many at one time")
    options.add_argument("--list", action="store_true", help="only name them")
    given = options.parse_args()
    mutants = [
        mutant
        for mutant in read_mutants()
        if not given.words
        or any(word in text for word in given.words for text in (mutant.name, *mutant.files))
    ]
    if given.list:
        for mutant in mutants:
            print(f"{mutant.name} ({', '.join(mutant.files)}): {mutant.why}")
        return 0
    started = time.monotonic()
    if not passes_unchanged(mutants):
        return 1
    with ThreadPoolExecutor(given.jobs) as pool:
        killed = list(pool.map(partial(report, started=started), mutants))
    print(f"{sum(killed)} of {len(mutants)} mutants were killed")
    return 0 if all(killed) and mutants else 1


if __name__ == "__main__":
    raise SystemExit(main())
