"""How large values may become before arithmetic is no longer exact, from the job alone."""

from mpc_train.base.bounds import WORD_BITS
from mpc_train.jobs.job import Job
from mpc_train.jobs.training import SOFTMAX_CLASSES
from mpc_train.networks.graph import NORMS


def most_of_ring(job: Job) -> int:
    """The bound of layer outputs for which a product's truncation is exact."""
    return 1 << (WORD_BITS - 2 * job.fraction_bits)


def most_hidden(job: Job) -> int:
    """The same if a norm sums squares, which are sized for the job's stated bound."""
    if any(node.op in NORMS for node in job.graph.nodes):
        return job.fixed_point.activation_limit
    return most_of_ring(job)


def most_output(job: Job) -> int:
    """The bound of the outputs, which metrics sum over classes, or square for numbers."""
    if job.classes:
        return min(most_hidden(job), most_of_ring(job) // SOFTMAX_CLASSES)
    squared = 1 << ((WORD_BITS - 1) // 2 - job.fraction_bits)
    return min(most_hidden(job), max(squared, job.fixed_point.activation_limit))
