"""Networks as data: from a torch module to a graph, over shares and in the clear."""
