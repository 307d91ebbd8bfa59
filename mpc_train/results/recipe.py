"""How a model's inputs are made from raw columns, as data: for manifests and their readers.

`elements` names the numbers in preparation.safetensors, `recipe` says how to apply them: with both,
an opened model can be used in plain PyTorch, without this package
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
    """For each tensor of `Pipeline.shapes` the inputs to which its numbers belong, in order."""
    places = {CENTER: pipeline.scaled, INVERSE: pipeline.scaled, FILL: pipeline.filled}
    return {name: [pipeline.terms[i].name for i in places[name]] for name in pipeline.shapes}


def recipe(job: Job) -> dict[str, object]:
    """The inputs in order, in JSON's form: first the terms with their columns, then the products.

    A term has `name` and `column`, and is one of four kinds. "number": u = ((log(clip(x)) − center)
    / scale)^power of the cell x, where clip and log are present only if the job has them; a date
    counts in days from 1970-01-01, a boolean is 0 or 1. A missing cell's u is replaced by `fill`,
    if the term has it, or by the element of prepare.fill. The input is u, or (u − prepare.center) ·
    prepare.inverse if those have an element of this name. "level": 1 if the cell is `level`, or not
    in `other_than`; otherwise, and if it is missing, 0. "index": the place of the cell in `levels`,
    from 0 on; `other` if it is not one of them and the term has this key, and `fill` if the cell is
    missing. "missing": 1 if the cell is missing.
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
