"""Write the tables of two hospitals and a clinic from the data set that comes with scikit-learn.

Breast Cancer Wisconsin (Diagnostic): 569 tumours, here with ten of their measurements. The
hospitals get the first rows of a fixed order, and the clinic the last 100, which have no label:
they are its new patients.
"""

from pathlib import Path

from sklearn.datasets import load_breast_cancer

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import permutation
from mpc_train.owners.dealing import deal_out, write_tables

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<name>.csv of each."""
    bunch, job = load_breast_cancer(), load_job(FOLDER / "training.toml")
    names = [str(name).replace(" ", "_") for name in bunch.feature_names[:10]]
    # scikit-learn numbers the classes the other way round: 0 is malignant.
    rows = [
        [*map(repr, values.tolist()), "false" if benign else "true"]
        for values, benign in zip(bunch.data[:, :10], bunch.target, strict=True)
    ]
    dealt = deal_out(job, len(rows))
    tables = {name: [rows[row] for row in theirs] for name, theirs in dealt.items()}
    write_tables(FOLDER / "data", [*names, "malignant"], tables)
    last = permutation(len(rows), "example", 1)[job.rows :]
    new = [[f"p{number:03}", *rows[row][:-1]] for number, row in enumerate(last, 1)]
    write_tables(FOLDER / "data", ["patient", *names], {"new-patients": new})


if __name__ == "__main__":
    main()
