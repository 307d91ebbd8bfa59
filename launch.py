"""Run a whole job on this machine: `python launch.py examples/breast_cancer/job.toml`.

The same as `mpc-train run`; see `--help` for the options.
"""

import sys

from mpc_train.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
