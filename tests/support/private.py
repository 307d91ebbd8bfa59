"""A small valid job that promises differential privacy, for tests to alter."""

from tests.support.jobs import JOB

PRIVACY = """
[privacy]
epsilon = 3
delta = 0.00001
neighbours = "zeroed"
clip = 2
"""
PRIVATE = (
    JOB.replace(
        'metrics = ["accuracy", "auc"]', 'metrics = ["accuracy"]\nnoise.epsilon = 0.5'
    ).replace("[train]\n", "[train]\nguard = false\n")
    + PRIVACY
)
