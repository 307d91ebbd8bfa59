"""Write the four hospitals' CSV files from a seed, with a rule behind them that is known.

Hospitals differ in whom they treat and in what they leave out. `TRUTH` is the rule that
readmissions follow: of standardised numbers, log creatinine among them, and of the rest.
"""

from pathlib import Path

import numpy as np

from mpc_train.admission.load import load_job
from mpc_train.owners.dealing import write_tables

FOLDER = Path(__file__).parent
SEED = 20
TRUTH = {
    "age": 0.7,
    "bmi": 0.3,
    "systolic": 0.25,
    "creatinine": 0.6,
    "smoker": 0.5,
    "emergency": 0.8,
    "transfer": 1.2,
    "hospice": -0.9,
    "intercept": -1.1,
}
ADMISSIONS = ("planned", "emergency", "transfer", "hospice")
"""The last is in no hospital's list of levels: an "other"."""
OLDER = {"university": 0, "county": 4, "clinic": -8, "island": 9}
GAPS = {"university": 0.03, "county": 0.1, "clinic": 0.25, "island": 0.4}


def main() -> None:
    """Write data/<hospital>.csv with the numbers of rows that job.toml says."""
    job = load_job(FOLDER / "job.toml")
    tables = {
        owner: patients(owner, job.data.rows[owner], np.random.default_rng([SEED, number]))
        for number, owner in enumerate(job.owners)
    }
    write_tables(FOLDER / "data", job.schema.names, tables)


def patients(owner: str, count: int, generator: np.random.Generator) -> list[list[str]]:
    """Rows as text, gaps included."""
    age = generator.normal(64 + OLDER[owner], 14, count).clip(18, 108).round()
    bmi = generator.normal(27, 5, count).clip(13, 70).round(1)
    systolic = generator.normal(128 + age / 8, 17, count).clip(70, 240).round()
    creatinine = np.exp(generator.normal(0.05, 0.45, count)).clip(0.15, 18).round(2)
    smoker = generator.random(count) < 0.25
    admission = generator.choice(4, count, p=[0.5, 0.35, 0.12, 0.03])
    effects = np.array([0.0, *(TRUTH[name] for name in ADMISSIONS[1:])])
    logit = (
        TRUTH["intercept"]
        + TRUTH["age"] * (age - 64) / 14
        + TRUTH["bmi"] * (bmi - 27) / 5
        + TRUTH["systolic"] * (systolic - 136) / 17
        + TRUTH["creatinine"] * (np.log(creatinine) - 0.05) / 0.45
        + TRUTH["smoker"] * smoker
        + effects[admission]
    )
    readmitted = generator.random(count) < 1 / (1 + np.exp(-logit))
    columns = [
        [f"{value:.0f}" for value in age],
        with_gaps([f"{value:.1f}" for value in bmi], "NA", owner, generator),
        with_gaps([f"{value:.0f}" for value in systolic], "-9", owner, generator),
        with_gaps([f"{value:.2f}" for value in creatinine], "", owner, generator),
        with_gaps(["yes" if value else "no" for value in smoker], "unknown", owner, generator),
        [ADMISSIONS[value] for value in admission],
        [str(int(value)) for value in readmitted],
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def with_gaps(cells: list[str], code: str, owner: str, generator: np.random.Generator) -> list[str]:
    """The cells, some of them replaced by the hospital's code for a missing value."""
    gone = generator.random(len(cells)) < GAPS[owner]
    return [code if missing else cell for cell, missing in zip(cells, gone, strict=True)]


if __name__ == "__main__":
    main()
