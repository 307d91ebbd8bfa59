"""Preparation over shares: from the owners' columns to the model's inputs."""
