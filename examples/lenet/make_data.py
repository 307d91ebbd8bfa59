"""Write the two organisations' npz files from the data set that comes with scikit-learn.

Handwritten digits: 1797 images of 8 by 8 pixels with 17 grey levels. The rows are dealt out in a
fixed order; nothing is random from run to run.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import permutation

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<owner>.npz with the numbers of rows that job.toml says: images and digits."""
    job = load_job(FOLDER / "job.toml")
    bunch = load_digits()
    order = permutation(len(bunch.target), "example", 1)
    (FOLDER / "data").mkdir(exist_ok=True)
    for owner in job.owners:
        first = job.first_row(owner)
        rows = order[first : first + job.data.rows[owner]]
        images = bunch.images[rows].astype(np.uint8)[:, np.newaxis]
        np.savez(FOLDER / "data" / f"{owner}.npz", image=images, digit=bunch.target[rows])
        print(f"wrote {owner}.npz: {job.data.rows[owner]} rows")


if __name__ == "__main__":
    main()
