"""Metrics over shares on held-out rows, rounded and refused before anybody sees them."""
