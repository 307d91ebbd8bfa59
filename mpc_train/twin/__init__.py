"""The plaintext twin: the same training in the clear, for tests and local demonstrations."""
