"""Write what each party has, from the data set that comes with scikit-learn.

Breast Cancer Wisconsin (Diagnostic): 569 tumours, 30 measurements, malignant or not. Alice has the
first 15 measurements, Bob the others and the labels. The first 480 rows are for training.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

FOLDER = Path(__file__).parent / "data"
TRAINING = 480


def main() -> None:
    """Write data/{alice,bob}_{train,test}.npy and data/labels_{train,test}.npy."""
    bunch = load_breast_cancer()
    features = (bunch.data - bunch.data.mean(0)) / bunch.data.std(0)
    tables = {
        "alice": features[:, :15],
        "bob": features[:, 15:],
        # scikit-learn numbers the classes the other way round: 0 is malignant.
        "labels": (1.0 - bunch.target).reshape(-1, 1),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, table in tables.items():
        np.save(FOLDER / f"{name}_train.npy", table[:TRAINING])
        np.save(FOLDER / f"{name}_test.npy", table[TRAINING:])
        print(f"wrote {name}: {TRAINING} rows and {len(table) - TRAINING} to test with")


if __name__ == "__main__":
    main()
