"""Write the bank's and the insurer's CSV files from a seed, with a rule behind them that is known.

`TRUTH` is the rule that defaults follow: of standardised numbers, logarithms of income and car
value among them, and of the rest. The two write their customers' names and dates of birth in
different ways, and leave different cells out; 1,500 customers are both's.
"""

import csv
import datetime
import unicodedata
from pathlib import Path

import numpy as np

from mpc_train.admission.load import load_job

FOLDER = Path(__file__).parent
SEED = 21
BOTH = 1500
TRUTH = {
    "income": -0.8,
    "debt_ratio": 0.9,
    "claims": 0.6,
    "car_value": -0.3,
    "self-employed": 0.7,
    "retired": -0.4,
    "other": 0.3,
    "suburb": -0.3,
    "country": 0.2,
    "intercept": -0.9,
}
EMPLOYMENT = ("employed", "self-employed", "retired", "in training")
"""The last is in no list of levels: an "other"."""
REGIONS = ("city", "suburb", "country")
FIRST = ("Zoë", "José", "Łukasz", "Anna", "Søren", "Müge", "Chloé", "Jürgen", "Inés", "Tom", "Åsa")
LAST = (
    "Müller",
    "Nowak",
    "García",
    "de la Cruz",
    "Sørensen",
    "O'Brien",
    "Yılmaz",
    "Lefèvre",
    "Kim",
)


def main() -> None:
    """Write data/bank.csv and data/insurer.csv with the numbers of rows that job.toml says."""
    job = load_job(FOLDER / "job.toml")
    rows = job.data.rows
    people = customers(rows["bank"] + rows["insurer"] - BOTH, np.random.default_rng(SEED))
    rng = np.random.default_rng([SEED, 1])
    (FOLDER / "data").mkdir(exist_ok=True)
    write_bank(people[: rows["bank"]], rng)
    write_insurer(people[rows["bank"] - BOTH :], rng)


def customers(count: int, rng: np.random.Generator) -> list[dict[str, object]]:
    """Customers with everything that both know of them; no two have one name and birthday."""
    income = np.exp(rng.normal(10.4, 0.6, count)).clip(1000, 1000000).round()
    debt_ratio = rng.gamma(2.0, 0.2, count).clip(0, 3).round(3)
    claims = rng.poisson(1.2, count).clip(0, 30)
    car_value = np.exp(rng.normal(9.2, 0.8, count)).clip(100, 500000).round()
    employment = rng.choice(4, count, p=[0.6, 0.15, 0.2, 0.05])
    region = rng.choice(3, count, p=[0.5, 0.3, 0.2])
    logit = (
        TRUTH["intercept"]
        + TRUTH["income"] * (np.log(income) - 10.4) / 0.6
        + TRUTH["debt_ratio"] * (debt_ratio - 0.4) / 0.28
        + TRUTH["claims"] * (claims - 1.2) / 1.1
        + TRUTH["car_value"] * (np.log(car_value) - 9.2) / 0.8
        + np.array([0.0, TRUTH["self-employed"], TRUTH["retired"], TRUTH["other"]])[employment]
        + np.array([0.0, TRUTH["suburb"], TRUTH["country"]])[region]
    )
    default = rng.random(count) < 1 / (1 + np.exp(-logit))
    first_day = datetime.date(1940, 1, 1)
    found = []
    for i in range(count):
        # Days far apart: names repeat, names with a birthday do not.
        born = first_day + datetime.timedelta(days=int(i * 23 % 22003))
        found.append(
            {
                "name": f"{FIRST[i % len(FIRST)]} {LAST[i // 5 % len(LAST)]}",
                "born": born,
                "income": income[i],
                "debt_ratio": debt_ratio[i],
                "employment": EMPLOYMENT[employment[i]],
                "claims": claims[i],
                "car_value": car_value[i],
                "region": REGIONS[region[i]],
                "default": int(default[i]),
            }
        )
    return found


def write_bank(people: list[dict[str, object]], rng: np.random.Generator) -> None:
    """UTF-8, commas, names as people write them, ISO dates."""
    with (FOLDER / "data" / "bank.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "born", "income", "debt_ratio", "employment", "default"))
        for i in rng.permutation(len(people)):
            one = people[i]
            writer.writerow(
                (
                    one["name"],
                    one["born"],
                    gap(f"{one['income']:.0f}", "NA", 0.15, rng),
                    gap(f"{one['debt_ratio']:.3f}", "", 0.05, rng),
                    gap(str(one["employment"]), "", 0.05, rng),
                    one["default"],
                )
            )
    print(f"wrote bank.csv: {len(people)} rows")


def write_insurer(people: list[dict[str, object]], rng: np.random.Generator) -> None:
    """Latin-1, semicolons, names in capitals without accents, German dates."""
    with (FOLDER / "data" / "insurer.csv").open("w", newline="", encoding="latin-1") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\r\n")
        writer.writerow(("name", "born", "claims", "car_value", "region"))
        for i in rng.permutation(len(people)):
            one = people[i]
            born = one["born"]
            assert isinstance(born, datetime.date)
            writer.writerow(
                (
                    plain(str(one["name"])),
                    f"{born:%d.%m.%Y}",
                    one["claims"],
                    gap(f"{one['car_value']:.0f}", "-", 0.1, rng),
                    one["region"],
                )
            )
    print(f"wrote insurer.csv: {len(people)} rows")


def plain(name: str) -> str:
    """ "Łukasz de la Cruz" as "LUKASZ  DE LA CRUZ": another spelling, the same person."""
    letters = name.translate(str.maketrans("Łłøı", "Lloi"))
    decomposed = unicodedata.normalize("NFKD", letters)
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return bare.upper().replace(" ", "  ", 1)


def gap(cell: str, code: str, share: float, rng: np.random.Generator) -> str:
    """The cell, or the owner's code for a missing one."""
    return code if rng.random() < share else cell


if __name__ == "__main__":
    main()
