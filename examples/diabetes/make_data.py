"""Write the four clinics' CSV files from the data set that comes with scikit-learn.

Diabetes: 442 patients, ten measurements, and how far the disease went within a year. The rows
are dealt out in a fixed order; nothing is random from run to run.
"""

from pathlib import Path

from sklearn.datasets import load_diabetes

from mpc_train.admission.load import load_job
from mpc_train.owners.dealing import deal_out, write_tables

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<clinic>.csv with the numbers of rows that job.toml says."""
    bunch = load_diabetes(scaled=False)
    rows = [
        [*map(repr, values.tolist()), repr(float(progression))]
        for values, progression in zip(bunch.data, bunch.target, strict=True)
    ]
    dealt = deal_out(load_job(FOLDER / "job.toml"), len(rows))
    tables = {owner: [rows[row] for row in theirs] for owner, theirs in dealt.items()}
    write_tables(FOLDER / "data", [*bunch.feature_names, "progression"], tables)


if __name__ == "__main__":
    main()
