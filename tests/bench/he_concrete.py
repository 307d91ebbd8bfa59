"""Concrete ML's encrypted logistic regression on records from a file, for `he.py`.

    python tests/bench/he_concrete.py records.npz 4096

Run by an interpreter that has Concrete ML (`pip install concrete-ml==1.9.0`; Python 3.8 to 3.12,
with versions of PyTorch and NumPy that are not ours); it needs nothing else of this repository. The
file has `x`, float64[records, inputs], and `y`, the classes; the model is fitted to all of them and
asked about the first so many. Client and server are those of its deployment API, in one process;
each record is encrypted by itself, so costs are proportional to their number. The last line is a
JSON object; status 3 if it is not installed.
"""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

N_BITS = 8
"""To how many bits inputs and weights are quantised."""


def measured(x: np.ndarray, y: np.ndarray, records: int) -> dict[str, object]:
    import concrete.ml.version
    from concrete.ml.deployment import FHEModelClient, FHEModelDev, FHEModelServer
    from concrete.ml.sklearn import LogisticRegression

    model = LogisticRegression(n_bits=N_BITS, max_iter=1000)
    model.fit(x, y)
    model.compile(x)
    with tempfile.TemporaryDirectory() as folder:
        FHEModelDev(str(Path(folder) / "model"), model).save()
        client = FHEModelClient(str(Path(folder) / "model"), key_dir=str(Path(folder) / "keys"))
        server = FHEModelServer(str(Path(folder) / "model"))
        server.load()
        client.generate_private_and_evaluation_keys()
        keys = client.get_serialized_evaluation_keys()
        up = down = 0
        client_s = server_s = 0.0
        found = []
        for record in x[:records]:
            began = time.process_time()
            asked = client.quantize_encrypt_serialize(record[None])
            sent = time.process_time()
            answer = server.run(asked, keys)
            came = time.process_time()
            found.append(client.deserialize_decrypt_dequantize(answer)[0])
            client_s += sent - began + time.process_time() - came
            server_s += came - sent
            up, down = up + len(asked), down + len(answer)
    plain = model.sklearn_model.predict_proba(x[:records])
    probabilities = np.array(found)
    return {
        "version": concrete.ml.version.__version__,
        "records": len(found),
        "client_cpu_s": client_s,
        "server_cpu_s": server_s,
        "bytes_up": up,
        "bytes_of_keys": len(keys),
        "bytes_down": down,
        "largest_difference_of_a_probability": float(np.abs(probabilities - plain).max()),
        "other_classes": int((probabilities.argmax(1) != plain.argmax(1)).sum()),
    }


def main() -> int:
    warnings.simplefilter("ignore")
    try:
        import concrete.ml  # noqa: F401
    except ImportError as error:
        print(f"Concrete ML is not installed for {sys.executable}: {error}", file=sys.stderr)
        return 3
    with np.load(sys.argv[1]) as records:
        print(json.dumps(measured(records["x"], records["y"], int(sys.argv[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
