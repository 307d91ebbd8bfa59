"""Write the two organisations' npz files from the data set that comes with scikit-learn.

Handwritten digits: 1797 images of 8 by 8 pixels with 17 grey levels. The rows are dealt out in a
fixed order; nothing is random from run to run.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from mpc_train.admission.load import load_job
from mpc_train.owners.dealing import deal_out

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<owner>.npz with the numbers of rows that job.toml says: images and digits."""
    bunch = load_digits()
    (FOLDER / "data").mkdir(exist_ok=True)
    dealt = deal_out(load_job(FOLDER / "job.toml"), len(bunch.target))
    for owner, rows in dealt.items():
        images = bunch.images[rows].astype(np.uint8)[:, np.newaxis]
        np.savez(FOLDER / "data" / f"{owner}.npz", image=images, digit=bunch.target[rows])
        print(f"wrote {owner}.npz: {len(rows)} rows")


if __name__ == "__main__":
    main()
