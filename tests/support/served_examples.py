"""The examples' jobs as jobs whose model stays in shares, and their models: kept, and opened.

An opened model is made of all evaluators' shares added up, as nobody can do who has one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from mpc_train.admission.load import load_job
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import held_out_of
from mpc_train.jobs.sealed import CENTER, FILL, INVERSE
from mpc_train.jobs.serve import Serve
from mpc_train.owners.cells import CELL_BITS, WORD_BITS, reaches
from mpc_train.owners.table import Table, load_table
from mpc_train.preparation.fitted import filled_places
from mpc_train.results.plain_model import plain_module
from mpc_train.results.predicting import Predictor
from mpc_train.run.local import local_data
from mpc_train.shared.brought import INPUT_BITS, statistics_shapes, statistics_words
from mpc_train.shared.share import COARSE, INSTEAD, OFFSET, TENSOR, About, ModelShare
from mpc_train.shared.share import FILL as DECLARED
from mpc_train.tables.typed import TypedTable
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import train_twin
from protocols.arrays import Reals
from protocols.ring.fixed_point import decode
from tests.support.examples import EXAMPLES, copied_example, make_data
from tests.support.served import shares_of
from tests.support.shared_models import together

TRAINED = tuple(sorted(path.parent.name for path in EXAMPLES.glob("*/job.toml")))
"""The examples that train something."""


def adapted(name: str, folder: Path) -> Path:
    """A copy of the example whose model stays in shares, with its data; the path of its job."""
    path = copied_example(name, folder)
    if (folder / "make_data.py").is_file():  # or its tables are those of another example
        make_data(folder)
    text = path.read_text()
    for line in (r"recipients = \[.*\]", r"threshold = \d+", r'model = "shares"'):
        text = re.sub(rf"^{line}\n", "", text, flags=re.MULTILINE)
    if "[reveal]" not in text:
        text += "\n[reveal]\n"
    text = text.replace("[reveal]\n", '[reveal]\nmodel = "shares"\n')
    if "[serve]" not in text:
        text += '\n[serve]\nclients = ["clinic"]\n'
    path.write_text(text)
    if name == "trust":  # whose tables come from vaults, imported with this setting
        owners = load_job(path).owners
        lines = [f'{one} = {{ file = "data/{one}.csv", ignore = ["patient"] }}' for one in owners]
        (folder / "local.toml").write_text("\n".join(["[data]", *lines]))
    return path


def tables_of(folder: Path, job: Job) -> Sequence[Table]:
    """What all owners bring."""
    sources = local_data(folder / "job.toml", job)
    return [load_table(sources[owner], job, owner) for owner in job.owners]


def held_out(folder: Path, predictor: Predictor) -> TypedTable:
    """The rows that the job holds out of training, of all owners, as whoever asks reads them."""
    job, found = predictor.job, list[TypedTable]()
    for owner, source in local_data(folder / "job.toml", job).items():
        (table,) = predictor.tables(source)
        rows = held_out_of(job, owner) - job.first_row(owner)
        found.append(replace(table, values=table.values[rows], missing=table.missing[rows]))
    values, missing = (
        np.concatenate([getattr(table, name) for table in found]) for name in ("values", "missing")
    )
    return replace(found[0], values=values, missing=missing)


def trained_in_the_clear(job: Job, tables: Sequence[Table]) -> list[ModelShare]:
    """Shares of the model of the plaintext twin."""
    state = train_twin(job, tables, initial_weights(job)).state
    made = shares_of(job, {name: state[name] for name in job.shapes})
    if job.pipeline.scaled:
        about = made[0].about
        public = msgspec.structs.replace(about.public, word=WORD_BITS, bits=INPUT_BITS)
        made = [replace(share, about=About.of(public)) for share in made]
    words, start = statistics_words(job, {name: state[name] for name in job.pipeline.shapes}), 0
    rng = np.random.default_rng(5)
    for name, (size,) in statistics_shapes(job).items():
        left = words[start : start + size]
        for share in made[1:]:
            share.parts[name] = rng.integers(-(2**62), 2**62, size)
            with np.errstate(over="ignore"):
                left = left - share.parts[name]
        made[0].parts[name] = left
        start += size
    return made


def answering(shares: Sequence[ModelShare], **says: object) -> list[ModelShare]:
    """The same model under a job that lets clients have another answer."""
    about = shares[0].about
    serve = Serve(("clinic",), **says)  # type: ignore[arg-type]
    job = msgspec.structs.replace(about.job, serve=serve)
    public = msgspec.structs.replace(about.public, job=job.to_bytes().decode())
    return [ModelShare(About.of(public), share.parts, share.agreed) for share in shares]


def opened(shares: Sequence[ModelShare]) -> Predictor:
    """The model in the clear."""
    about, words = shares[0].about, together(shares)
    job = about.job
    module = plain_module(job).double().eval()
    tensors = {
        name: torch.from_numpy(decode(words[TENSOR + name], job.fraction_bits))
        for name in job.shapes
    }
    missing, unknown = module.load_state_dict(tensors, strict=False)
    assert not unknown and all(name.endswith("num_batches_tracked") for name in missing)
    return Predictor(job, module, _statistics(job, words, about.public.word, about.public.bits))


def _statistics(
    job: Job, words: Mapping[str, np.ndarray], word: int, bits: int
) -> dict[str, Reals]:
    """Center, inverse and fill in the owners' units (`owners.applied`), of what is kept."""
    pipeline, found = job.pipeline, dict[str, Reals]()
    place = {index: k for k, index in enumerate(pipeline.scaled)}
    inverse = np.ones(0)
    if pipeline.scaled:
        units = np.ldexp(1.0, reaches(pipeline, pipeline.scaled) - CELL_BITS)
        per_cell = words[COARSE] / 2.0 ** (bits + word)
        inverse = per_cell / units
        found[INVERSE] = inverse
        found[CENTER] = words[OFFSET] / 2.0**bits / inverse
    if pipeline.filled:
        both, declared = filled_places(pipeline)
        fill = np.zeros(len(pipeline.filled))
        if both:
            mine = [place[pipeline.filled[k]] for k in both]
            fill[both] = words[INSTEAD] / 2.0**bits / inverse[mine]
        if declared:
            fill[declared] = decode(words[DECLARED], job.fraction_bits)
        found[FILL] = fill
    return found


def example_job(name: str, folder: Path) -> Job:
    return load_job(adapted(name, folder))
