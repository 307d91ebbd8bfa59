"""Write tests/vectors/transcripts.json: rounds and frames of every primitive, layer and step.

python -m tests.vectors.make_transcripts
"""

import json
from pathlib import Path

import numpy as np

from tests.support.transcripts import PROGRAM_TRAFFIC, SHAPE, TRAFFIC, summary, traffic

PATH = Path(__file__).with_name("transcripts.json")


def main() -> None:
    zeros = np.zeros(SHAPE, np.int64)
    pins = {
        f"{name}, {evaluators} evaluators": summary(*traffic(name, evaluators, zeros))
        for name in (*TRAFFIC, *PROGRAM_TRAFFIC)
        for evaluators in (2, 3)
    }
    PATH.write_text(json.dumps(pins, indent=1) + "\n")


if __name__ == "__main__":
    main()
