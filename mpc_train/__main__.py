"""`python -m mpc_train` is the command `mpc-train`."""

from mpc_train.cli import main

main()
