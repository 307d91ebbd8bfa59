"""Run a whole job on this machine: `python launch.py examples/breast_cancer/job.toml`.

The same as `mpc-train run`; see `--help` for the options. `python launch.py --script SCRIPT.py`
runs a CrypTen script, every party of it a process.
"""

import sys

from mpc_train.cli import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["--script"]:
        sys.argv[1] = "script"
    else:
        sys.argv.insert(1, "run")
    main()
