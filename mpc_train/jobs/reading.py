"""What a revealed metric is, once it is a number."""

from typing import Any

Reading = float | None | list[Any]
"""None: refused. A confusion matrix is rows of counts by true class; a calibration has, for each
bin, its mean probability and the share of positives, or None."""
