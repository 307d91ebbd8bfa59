"""Write the three hospitals' CSV files from the data set that comes with scikit-learn.

Breast Cancer Wisconsin (Diagnostic): 569 tumours, 30 measurements, malignant or not. The rows
are dealt out in a fixed order; nothing is random from run to run.
"""

from pathlib import Path

from sklearn.datasets import load_breast_cancer

from mpc_train.admission.load import load_job
from mpc_train.owners.dealing import deal_out, write_tables

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<hospital>.csv with the numbers of rows that job.toml says."""
    bunch = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in bunch.feature_names]
    # scikit-learn numbers the classes the other way round: 0 is malignant.
    rows = [
        [*map(repr, values.tolist()), 1 - int(benign)]
        for values, benign in zip(bunch.data, bunch.target, strict=True)
    ]
    dealt = deal_out(load_job(FOLDER / "job.toml"), len(rows))
    tables = {owner: [rows[row] for row in theirs] for owner, theirs in dealt.items()}
    write_tables(FOLDER / "data", [*names, "malignant"], tables)


if __name__ == "__main__":
    main()
