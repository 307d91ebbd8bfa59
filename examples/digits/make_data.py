"""Write the two organisations' CSV files from the data set that comes with scikit-learn.

Handwritten digits: 1797 images of 8 by 8 pixels with 17 grey levels. The rows are dealt out in a
fixed order; nothing is random from run to run.
"""

import csv
from pathlib import Path

from sklearn.datasets import load_digits

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import permutation

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<owner>.csv with the numbers of rows that job.toml says."""
    job = load_job(FOLDER / "job.toml")
    bunch = load_digits()
    order = permutation(len(bunch.target), "example", 1)
    (FOLDER / "data").mkdir(exist_ok=True)
    for owner in job.owners:
        first = job.first_row(owner)
        with (FOLDER / "data" / f"{owner}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*(feature.name for feature in job.features), job.label.name])
            for row in order[first : first + job.data.rows[owner]]:
                writer.writerow([*map(int, bunch.data[row]), int(bunch.target[row])])
        print(f"wrote {owner}.csv: {job.data.rows[owner]} rows")


if __name__ == "__main__":
    main()
