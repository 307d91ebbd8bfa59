"""The verbs that serve a model."""
