"""Training over shares: steps, optimizers, losses, and disclosures during training."""
