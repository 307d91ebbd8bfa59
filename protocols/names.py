"""Names of nodes, and how many a job may list: one rule for cards, contracts, messages and jobs.
Names of objects in a node's vault."""

import re

MAX_NAME_BYTES = 63
NAME = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{MAX_NAME_BYTES - 1}}}\Z")
OBJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Of objects of a vault and their kinds: they are parts of file names."""
MAX_ROLE_NAMES = 64
"""The most owners of one job; also the most evaluators, and the most recipients."""
MAX_NAMES = 3 * MAX_ROLE_NAMES + 1
"""The most names in one job: owners, evaluators, recipients, a dealer."""
