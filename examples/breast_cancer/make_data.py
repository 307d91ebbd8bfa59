"""Write the three hospitals' CSV files from the data set that comes with scikit-learn.

Breast Cancer Wisconsin (Diagnostic): 569 tumours, 30 measurements, malignant or not. The rows
are dealt out in a fixed order; nothing is random from run to run.
"""

import csv
from pathlib import Path

from sklearn.datasets import load_breast_cancer

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import permutation

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<hospital>.csv with the numbers of rows that job.toml says."""
    job = load_job(FOLDER / "job.toml")
    bunch = load_breast_cancer()
    order = permutation(len(bunch.target), "example", 1)
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    (FOLDER / "data").mkdir(exist_ok=True)
    for owner in job.owners:
        first = job.first_row(owner)
        with (FOLDER / "data" / f"{owner}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*names, "malignant"])
            for row in order[first : first + job.data.rows[owner]]:
                # scikit-learn numbers the classes the other way round: 0 is malignant.
                values = [repr(float(value)) for value in bunch.data[row]]
                writer.writerow([*values, 1 - int(bunch.target[row])])
        print(f"wrote {owner}.csv: {job.data.rows[owner]} rows")


if __name__ == "__main__":
    main()
