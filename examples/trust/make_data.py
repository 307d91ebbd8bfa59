"""Write the three hospitals' CSV files from the data set that comes with scikit-learn.

Breast Cancer Wisconsin (Diagnostic): six measurements of each of 569 tumours, and whether it was
malignant. The patients' numbers are invented. Nothing is random from run to run.
"""

from pathlib import Path

from sklearn.datasets import load_breast_cancer

from mpc_train.admission.load import load_job
from mpc_train.owners.dealing import deal_out, write_tables

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<hospital>.csv with the numbers of rows that job.toml says."""
    job = load_job(FOLDER / "job.toml")
    bunch = load_breast_cancer()
    columns = [str(name).replace(" ", "_") for name in bunch.feature_names]
    chosen = [columns.index(feature.name) for feature in job.features]
    dealt = deal_out(job, len(bunch.data))
    tables = {
        owner: [
            # scikit-learn numbers the classes the other way round: 0 is malignant.
            [
                f"{owner[-1].upper()}-{number:04}",
                *(repr(float(bunch.data[row, column])) for column in chosen),
                1 - int(bunch.target[row]),
            ]
            for number, row in enumerate(rows, start=1)
        ]
        for owner, rows in dealt.items()
    }
    names = ["patient", *(feature.name for feature in job.features), "malignant"]
    write_tables(FOLDER / "data", names, tables)


if __name__ == "__main__":
    main()
