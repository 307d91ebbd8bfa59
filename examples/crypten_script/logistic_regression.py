"""Logistic regression as a CrypTen script: Alice's and Bob's columns, Bob's labels.

Run it with `python launch.py --script examples/crypten_script/logistic_regression.py`. The lines
below are CrypTen's; only the import is this platform's.
"""

from pathlib import Path

import numpy as np
import torch

from mpc_train.scripts import crypten

ALICE, BOB = 0, 1
DATA = Path(__file__).parent / "data"


def load(name: str, src: int, columns: int, rows: int) -> torch.Tensor:
    """A party reads its own file; the others know the shape."""
    if crypten.communicator.get().get_rank() == src:
        return torch.from_numpy(np.load(DATA / f"{name}.npy"))
    return torch.empty(rows, columns)


def main() -> None:
    """Train, and open how often it is right and one weight."""
    crypten.init()
    torch.manual_seed(1)
    x_alice = crypten.cryptensor(load("alice_train", ALICE, 15, 480), src=ALICE)
    x_bob = crypten.cryptensor(load("bob_train", BOB, 15, 480), src=BOB)
    y = crypten.cryptensor(load("labels_train", BOB, 1, 480), src=BOB)
    x = crypten.cat([x_alice, x_bob], dim=1)

    model = crypten.nn.Linear(30, 1)
    model.encrypt(src=ALICE)
    model.train()
    criterion = crypten.nn.BCEWithLogitsLoss()
    learning_rate, num_epochs, batch_size = 0.5, 8, 60

    for epoch in range(num_epochs):
        for start in range(0, 480, batch_size):
            output = model(x[start : start + batch_size])
            loss = criterion(output, y[start : start + batch_size])
            model.zero_grad()
            loss.backward()
            model.update_parameters(learning_rate, grad_threshold=None)
        crypten.print(f"epoch {epoch + 1} of {num_epochs}")

    model.eval()
    x_test = crypten.cat(
        [
            crypten.cryptensor(load("alice_test", ALICE, 15, 89), src=ALICE),
            crypten.cryptensor(load("bob_test", BOB, 15, 89), src=BOB),
        ],
        dim=1,
    )
    labels = crypten.cryptensor(load("labels_test", BOB, 1, 89), src=BOB)
    predicted = model(x_test) > 0
    accuracy = (predicted == labels).mean().get_plain_text()
    crypten.print(f"accuracy on 89 other rows: {accuracy.item():.4f}")
    model.decrypt()
    crypten.print(f"weight of the first column: {model.weight[0, 0].item():.4f}")


main()
