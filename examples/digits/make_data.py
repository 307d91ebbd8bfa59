"""Write the two organisations' CSV files from the data set that comes with scikit-learn.

Handwritten digits: 1797 images of 8 by 8 pixels with 17 grey levels. The rows are dealt out in a
fixed order; nothing is random from run to run.
"""

from pathlib import Path

from sklearn.datasets import load_digits

from mpc_train.admission.load import load_job
from mpc_train.owners.dealing import deal_out, write_tables

FOLDER = Path(__file__).parent


def main() -> None:
    """Write data/<owner>.csv with the numbers of rows that job.toml says."""
    job = load_job(FOLDER / "job.toml")
    bunch = load_digits()
    rows = [
        [*map(int, pixels), int(digit)]
        for pixels, digit in zip(bunch.data, bunch.target, strict=True)
    ]
    dealt = deal_out(job, len(rows))
    tables = {owner: [rows[row] for row in theirs] for owner, theirs in dealt.items()}
    write_tables(
        FOLDER / "data", [*(feature.name for feature in job.features), job.label.name], tables
    )


if __name__ == "__main__":
    main()
