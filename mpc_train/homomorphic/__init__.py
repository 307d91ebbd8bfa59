"""Predictions under homomorphic encryption: parameters, keys, what a server computes."""
