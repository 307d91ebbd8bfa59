"""How a model's inputs are made from raw columns, as data: for manifests and their readers.

`elements` names the numbers in preparation.safetensors, `recipe` says what is done with them:
with both an opened model can be fed in plain PyTorch, without this package
(`mpc_train/docs/opened-model.md`). Everything here follows from the job and is public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpc_train.jobs.pipeline import Pipeline, Term
from mpc_train.jobs.sealed import CENTER, FILL, INVERSE
from mpc_train.tables.schema import Column

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def elements(pipeline: Pipeline) -> dict[str, list[str]]:
    """For each tensor of `Pipeline.shapes` the inputs that its numbers are of, in their order."""
    places = {CENTER: pipeline.scaled, INVERSE: pipeline.scaled, FILL: pipeline.filled}
    return {name: [pipeline.terms[i].name for i in places[name]] for name in pipeline.shapes}


def recipe(job: Job) -> dict[str, object]:
    """The inputs in their order, as JSON has them: what each is of its column, then the products.

    A term has `name` and `column`, and is one of four kinds. "number":
    u = ((log(clip(x)) − center) / scale)^power of the cell x, where clip and log are there only if
    the job has them; a date counts in days from 1970-01-01, a boolean is 0 or 1. In place of a
    missing cell's u stands `fill`, if the term has it, or the element of prepare.fill. The input is
    u, or (u − prepare.center) · prepare.inverse where those have an element of this name. "level":
    1 where the cell is `level`, or none of `other_than`, 0 elsewhere and where it is missing.
    "index": the place of the cell in `levels`, from 0 on; `other` where it is none of them, if the
    term has it, and `fill` where the cell is missing. "missing": 1 where the cell is missing.
    """
    pipeline = job.pipeline
    return {
        "inputs": list(pipeline.names),
        "terms": [_described(term, job.schema[term.column]) for term in pipeline.terms],
        "interactions": [
            [pipeline.terms[left].name, pipeline.terms[right].name]
            for left, right in pipeline.interactions
        ],
        "elements": elements(pipeline),
    }


def _described(term: Term, column: Column) -> dict[str, object]:
    found: dict[str, object] = {"name": term.name, "column": term.column, "kind": term.part}
    if term.part == "level":
        if term.level < len(column.levels):
            return found | {"level": column.levels[term.level]}
        return found | {"other_than": list(column.levels)}
    if term.part == "missing":
        return found
    if term.part == "index":
        found |= {"levels": list(column.levels)}
        if column.other:
            found["other"] = len(column.levels)
        return found if term.fill is None else found | {"fill": int(term.fill)}
    if term.clip is not None:
        found["clip"] = list(term.clip)
    if term.log is not None:
        found["log"] = term.log
    found |= {"center": term.center, "scale": term.scale, "power": term.power}
    if term.fill is not None:
        found["fill"] = term.fill
    return found
