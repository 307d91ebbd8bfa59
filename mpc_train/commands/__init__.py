"""The verbs of the command line. Each module imports what it needs when its verb runs, so that
`mpc-train --help`, the keys and the coordinator start without PyTorch."""
