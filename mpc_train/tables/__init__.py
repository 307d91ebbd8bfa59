"""An owner's own table: what its columns mean, how it is read, and what is wrong with it."""
