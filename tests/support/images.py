"""Ten thousand images of 28×28 pixels in ten classes, from the digits that scikit-learn brings.

Each is one of the 1,797 digits of 8×8 pixels, stretched to 28×28 with a shift of up to two pixels
and a scale of its own, and with noise. All of them are distinct; those of one digit are alike, so
that an accuracy on held-out rows says how near two trainings are, not how well a model would do on
digits that nobody has seen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from tests.support.csv_tables import csv_of, write_tables
from tests.support.jobs import job_toml, write_job

SIDE, CLASSES = 28, 10
ROWS = 10_000


def images(rows: int = ROWS, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """uint8[rows, 784] and the classes, int64[rows]."""
    digits, classes = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(digits), rows)
    found = np.empty((rows, SIDE * SIDE), np.uint8)
    for row, digit in enumerate(which):
        across, down = (_stretch(rng.uniform(-0.6, 0.6), rng.uniform(0.85, 1.1)) for _ in range(2))
        picture = down @ digits[digit].reshape(8, 8) @ across.T * (255 / 16)
        picture += rng.normal(0, 8, picture.shape)
        found[row] = np.clip(np.rint(picture), 0, 255).reshape(-1)
    assert len(np.unique(found, axis=0)) == rows
    return found, classes[which].astype(np.int64)


def _stretch(shift: float, scale: float) -> np.ndarray:
    """float64[28, 8]: how much each of 8 pixels in a line gives to each of 28."""
    middle = (SIDE - 1) / 2
    at = (np.arange(SIDE) - middle) * 8 / SIDE / scale + 3.5 + shift
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8)))


TRAIN = """
epochs = 5
batch_size = 128
optimizer = { learning_rate = 0.05, momentum = 0.9 }
schedule = { name = "cosine" }
"""
NET_A = "hidden = [128, 128]\nclasses = 10"


def write_images(folder: Path, kind: str = "mlp", model: str = NET_A, rows: int = ROWS) -> Path:
    """A job of two owners and their files; returns the job's path."""
    pixels, classes = images(rows)
    names = [f"p{index}" for index in range(SIDE * SIDE)]
    first = rows * 3 // 5
    lines = csv_of(**dict(zip(names, pixels.T, strict=True)), digit=classes)
    write_tables(
        folder,
        {"clinic-a": lines[: first + 1], "clinic-b": [lines[0], *lines[first + 1 :]]},
    )
    text = job_toml(
        [f'{{ name = "{name}", scale = 255, range = [0, 255] }}' for name in names],
        kind,
        label="digit",
        rows={"clinic-a": first, "clinic-b": rows - first},
        recipients=["clinic-a"],
        data="test_fraction = 0.2",
        model=model,
        train=TRAIN,
        more='[reveal]\nmetrics = ["accuracy"]',
    )
    return write_job(folder, text)
