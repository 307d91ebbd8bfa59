"""How nodes are called, and how many a job may name: one rule for cards, contracts, messages and
jobs."""

import re

MAX_NAME_BYTES = 63
NAME = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{MAX_NAME_BYTES - 1}}}\Z")
MAX_ROLE_NAMES = 64
"""Owners of one job; so many evaluators, and so many recipients, at the most."""
MAX_NAMES = 3 * MAX_ROLE_NAMES + 1
"""Of one job: owners, evaluators, recipients, a dealer."""
