"""The list of mutants fits the code: every place is there once, every test that is named exists."""

import ast
from pathlib import Path

import pytest

from tests.mutants.run import ROOT, Edit, Mutant, apply, copy_tree, read_mutants

MUTANTS = read_mutants()
LEAST = 40


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_what_is_there(mutant: Mutant) -> None:
    for name, text in mutant.texts(ROOT).items():
        assert text != (ROOT / name).read_text()
        ast.parse(text, name)
        assert name.split("/")[0] in ("protocols", "parties", "mpc_train")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_tests_are_there(mutant: Mutant) -> None:
    assert mutant.why and mutant.tests
    for name in mutant.tests:
        path, _, function = name.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert any(each.startswith("test_") for each in functions)
        assert not function or function in functions


def test_the_copy_has_the_tests(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    assert not [name for each in MUTANTS for name in each.tests if not _in(tmp_path, name)]


def _in(root: Path, test: str) -> bool:
    return (root / test.partition("::")[0]).exists()


def test_there_are_as_many_as_there_were() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= LEAST


def test_an_entry_without_its_head_is_no_edit_of_another(tmp_path: Path) -> None:
    path, edit = tmp_path / "list.toml", "[[mutant.edit]]\nfile = 'a'\nold = 'b'\nnew = 'c'\n"
    entry = "name = '{}'\nwhy = 'd'\ntests = ['e']\n" + edit
    path.write_text(f"[[mutant]]\n{entry.format(1)}[[mutant]]\n{entry.format(2)}")
    assert len(read_mutants(path)) == 2
    path.write_text(f"[[mutant]]\n{entry.format(1)}{entry.format(2)}")
    with pytest.raises(TypeError, match="name"):
        read_mutants(path)


def test_an_edit_needs_its_place_once() -> None:
    edit = Edit("x.py", "one", "two")
    assert edit.applied("zero one") == "zero two"
    for text in ("zero", "one one"):
        with pytest.raises(ValueError, match=r"x\.py"):
            edit.applied(text)


def test_a_mutant_is_applied_to_the_copy_alone(tmp_path: Path) -> None:
    """And is younger there, so that nothing compiled of the original is taken for it."""
    mutant = MUTANTS[0]
    for name in mutant.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    before = {name: (ROOT / name).read_bytes() for name in mutant.files}
    times = {name: (tmp_path / name).stat().st_mtime for name in mutant.files}
    apply(mutant, tmp_path)
    for name in mutant.files:
        assert (ROOT / name).read_bytes() == before[name] != (tmp_path / name).read_bytes()
        assert (tmp_path / name).stat().st_mtime > times[name]
