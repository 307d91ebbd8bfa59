"""What is trained, by whom and under which rules: strict files, checks, the public schedule."""
