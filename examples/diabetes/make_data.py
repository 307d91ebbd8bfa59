"""Write the four clinics' CSV files from the data set that comes with scikit-learn.

Diabetes: 442 patients, ten measurements, and how far the disease went within a year. The rows
are dealt out in a fixed order; nothing is random from run to run.
"""

import csv
from pathlib import Path

from sklearn.datasets import load_diabetes

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import permutation

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<clinic>.csv with the numbers of rows that job.toml says."""
    job = load_job(FOLDER / "job.toml")
    bunch = load_diabetes(scaled=False)
    order = permutation(len(bunch.target), "example", 1)
    (FOLDER / "data").mkdir(exist_ok=True)
    for owner in job.owners:
        first = job.first_row(owner)
        with (FOLDER / "data" / f"{owner}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*bunch.feature_names, "progression"])
            for row in order[first : first + job.data.rows[owner]]:
                values = [repr(float(value)) for value in bunch.data[row]]
                writer.writerow([*values, repr(float(bunch.target[row]))])
        print(f"wrote {owner}.csv: {job.data.rows[owner]} rows")


if __name__ == "__main__":
    main()
