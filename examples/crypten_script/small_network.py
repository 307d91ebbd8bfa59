"""A small network as a CrypTen script, as CrypTen's tutorial trains one.

Run it with `python launch.py --script examples/crypten_script/small_network.py`. The lines below
are CrypTen's; only the import is this platform's.
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
    """Train, opening the loss of each epoch's last batch, and open how often it is right."""
    crypten.init()
    torch.manual_seed(1)
    x_alice_enc = crypten.cryptensor(load("alice_train", ALICE, 15, 480), src=ALICE)
    x_bob_enc = crypten.cryptensor(load("bob_train", BOB, 15, 480), src=BOB)
    x_combined_enc = crypten.cat([x_alice_enc, x_bob_enc], dim=1)
    labels = crypten.cryptensor(load("labels_train", BOB, 1, 480), src=BOB)

    model = crypten.nn.Sequential(
        crypten.nn.Linear(30, 16), crypten.nn.ReLU(), crypten.nn.Linear(16, 1)
    )
    model.encrypt(src=ALICE)
    model.train()
    loss = crypten.nn.MSELoss()
    optimizer = crypten.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    num_epochs, batch_size = 5, 60
    num_batches = x_combined_enc.size(0) // batch_size

    for i in range(num_epochs):
        for batch in range(num_batches):
            start, end = batch * batch_size, (batch + 1) * batch_size
            x_train, y_train = x_combined_enc[start:end], labels[start:end]
            output = model(x_train)
            loss_value = loss(output, y_train)
            optimizer.zero_grad()
            loss_value.backward()
            optimizer.step()
        batch_loss = loss_value.get_plain_text()
        crypten.print(f"epoch {i + 1} of {num_epochs}, loss {batch_loss.item():.4f}")

    model.eval()
    test = [load("alice_test", ALICE, 15, 89), load("bob_test", BOB, 15, 89)]
    parts = [crypten.cryptensor(x, src=src) for src, x in enumerate(test)]
    truth = crypten.cryptensor(load("labels_test", BOB, 1, 89), src=BOB)
    predicted = model(crypten.cat(parts, dim=1)) > 0.5
    accuracy = (predicted == truth).mean().get_plain_text()
    crypten.print(f"accuracy on 89 other rows: {accuracy.item():.4f}")


main()
