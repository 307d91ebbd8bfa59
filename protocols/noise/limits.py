"""How large noise can be: public numbers, without arrays."""

from fractions import Fraction

TAIL = Fraction(272, 20)
"""No number is larger than this many σ and K: exp(−13.6² / 2) is below 2^-133."""
