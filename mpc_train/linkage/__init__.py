"""Record linkage: from identifiers to tokens, from tokens to joined rows."""
