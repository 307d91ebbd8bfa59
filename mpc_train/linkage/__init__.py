"""Whose records are whose: identifiers into tokens, tokens into joined rows."""
