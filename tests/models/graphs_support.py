"""CUDA graphs without a GPU."""

from torch.utils._pytree import tree_map


class Recalled:
    """Stands in for captured graphs where there is no GPU: a replay computes once more.

    As with a graph, it sees nothing but the memory that it was captured with, and leaves the
    outputs in the memory that they had then.
    """

    def __init__(self, device):
        self.sizes = []

    def __call__(self, compute, batch):
        self.sizes.append(len(batch))
        outputs = compute(batch)

        def replay():
            tree_map(lambda old, new: old.copy_(new), outputs, compute(batch))

        return replay, outputs
