"""One small table with every kind of column, and its schema."""

import datetime

import numpy as np
import polars

from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.schema import days as days_since

ROWS = 60

SCHEMA = Schema(
    (
        Column("customer", "identifier"),
        Column("age", "number", missing=("", "NA", "-9")),
        Column("income", "number"),
        Column("region", "category", levels=("north", "söuth", "3"), other=True, missing=("",)),
        Column("member", "boolean", missing=("",)),
        Column("since", "date", missing=("",)),
    )
)
NAMES = ("age", "income", "region", "member", "since")


def frame() -> polars.DataFrame:
    """As a format with types holds it; every seventh cell is null where that is allowed."""
    generator = np.random.default_rng(3)

    def some(values: list[object], offset: int) -> list[object]:
        return [None if (row + offset) % 7 == 0 else value for row, value in enumerate(values)]

    regions = ["north", "söuth", "3", "elsewhere"]
    first = datetime.date(1965, 3, 1)
    return polars.DataFrame(
        {
            "customer": [f'C"{row},x' for row in range(ROWS)],
            "age": some([int(age) for age in generator.integers(18, 90, ROWS)], 0),
            "income": generator.normal(3e4, 1e4, ROWS).tolist(),
            "region": some([regions[row % 4] for row in range(ROWS)], 1),
            "member": some([row % 3 == 0 for row in range(ROWS)], 2),
            "since": some([first + datetime.timedelta(days=500 * row) for row in range(ROWS)], 3),
        }
    )


def expected() -> tuple[np.ndarray, np.ndarray]:
    """values and missing of `NAMES`."""
    table = frame()
    levels = {level: float(i) for i, level in enumerate(("north", "söuth", "3", "elsewhere"))}
    columns = []
    for name in NAMES:
        cells = table[name].to_list()
        if name == "region":
            cells = [None if cell is None else levels[cell] for cell in cells]
        elif name == "since":
            cells = [None if cell is None else days_since(cell) for cell in cells]
        columns.append([np.nan if cell is None else float(cell) for cell in cells])
    values = np.array(columns).T
    return np.nan_to_num(values), np.isnan(values)
