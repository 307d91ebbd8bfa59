"""A whole run between network namespaces, whose links delay and lose packets and fail for 30 s."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runs.test_resume import await_steps, events
from tests.support.far_apart import Missing, Places, far_apart
from tests.support.study import NODES, Study, largest_difference

DELAY_S, LOSS, OUTAGE_S = 0.020, 0.01, 30.0
EPOCHS, STEPS = 40, 200
PORT = 7700
TOLERANCE = 2**-10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> dict[str, np.ndarray]:
    """Of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(homes, folder / "homes")
    study = Study(folder, EPOCHS)
    try:
        study.coordinator()
        study.nodes()
        ended = study.ended()
        assert {end.status for end in ended.values()} == {0}, ended
        return study.model()
    finally:
        study.close()


@pytest.mark.slow
@pytest.mark.parametrize("route", ["direct", "relayed"])
@pytest.mark.parametrize("kind", ["netem", "tun"])
def test_a_training_outlives_a_line_that_loses_packets_and_fails(
    tmp_path: Path,
    homes: Path,
    model: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture[str],
    kind: str,
    route: str,
) -> None:
    """20 ms each way, 1 % of packets lost, and none for 30 s in the middle of the training."""
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path, EPOCHS)
    study.reconnect_s = 120
    try:
        with far_apart(kind, ("desk", *NODES), DELAY_S, LOSS) as places:
            begun = time.monotonic()
            train(study, places, route)
            counts = places.counts()
        apart = largest_difference(study.model(), model)
    except Missing as missing:
        pytest.skip(str(missing))
    finally:
        study.close()
    with capsys.disabled():
        print(
            f"\n{kind}, {route}: {STEPS} steps in {time.monotonic() - begun:.0f} s; {counts}; the "
            f"right model (within {apart:.1e})"
        )
    assert apart < TOLERANCE


def train(study: Study, places: Places, route: str) -> None:
    study.inside = {name: places.words(name) for name in places.names}
    study.coordinator(listen=f"tcp://{places.addresses['desk']}:{PORT}")
    for name in NODES:
        network = f'listen = "tcp://{places.addresses[name]}:{PORT}"' if route == "direct" else ""
        study.node(name, network=network)
    await_steps(study, STEPS // 10)
    with places.outage():
        time.sleep(OUTAGE_S)
        reached = max(event["fields"].get("step", 0) for event in events(study, "progress"))
        assert reached < STEPS, "the outage came too late"
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    assert ended["desk"].record["steps"] == STEPS
    assert events(study, "reconnected"), "the coordinator has not noticed the outage"
