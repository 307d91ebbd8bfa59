"""From raw columns to what the model sees: at the owner, over shares, and at a recipient."""
