"""Training over shares: steps, optimizers, losses, metrics, and what is disclosed on the way."""
