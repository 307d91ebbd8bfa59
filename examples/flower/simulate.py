"""Three hospitals in a simulation of Flower, with sealed updates and without, on the same data.

    python examples/flower/simulate.py

in an environment with `pip install mpc-train 'flwr[simulation]'`. All parties are in this process
and its workers: a simulation protects nobody.
"""

from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from sklearn.datasets import load_breast_cancer

from mpc_train.base.printing import say
from mpc_train.federated.flower import SealedFedAvg, sealed_mod
from mpc_train.federated.sealed import SealedRound

CLIENTS, ROUNDS, CLIP = 3, 5, 4.0
BACKEND = {"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}}


def network() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(30, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))


def rows_of(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, labels = load_breast_cancer(return_X_y=True)
    values = (values - values.mean(0)) / values.std(0)
    features = torch.tensor(values[client::CLIENTS], dtype=torch.float32)
    return features, torch.tensor(labels[client::CLIENTS], dtype=torch.float32)


def train(message: Message, context: Context) -> Message:
    """Twenty steps on a client's own rows."""
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    features, labels = rows_of(int(context.node_config["partition-id"]))
    for _ in range(20):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(features)[:, 0], labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for one in model.parameters():
                if one.grad is not None:
                    one.sub_(0.5 * one.grad)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(labels), "loss": float(loss.detach())}),
        }
    )
    return Message(content=content, reply_to=message)


def simulated(strategy: FedAvg, mods: list[Any]) -> dict[str, torch.Tensor]:
    """The global model after all rounds."""
    found = {}
    client, server = ClientApp(mods=mods), ServerApp()
    client.train()(train)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network().state_dict()),
            num_rounds=ROUNDS,
            train_config=ConfigRecord({}),
        )
        found.update(result.arrays.to_torch_state_dict())

    run_simulation(server, client, CLIENTS, backend_config=BACKEND)
    return found


def main() -> None:
    settings: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": CLIENTS,
        "min_available_nodes": CLIENTS,
    }
    house = SealedRound(evaluators=2)
    sealed = simulated(SealedFedAvg(house, CLIP, **settings), [sealed_mod(house.public, CLIP)])
    plain = simulated(FedAvg(**settings), [])
    apart = max(float((sealed[name] - plain[name]).abs().max()) for name in plain)
    say(f"Sealed and plain rounds differ by at most {apart:.1e} in a weight")


if __name__ == "__main__":
    main()
