"""The gradient of a step as one CUDA graph, which the host launches at once.

A step of DiT-XL/2 consists of some 2,000 kernels. Launching them one by one takes the host about
70 ms, longer than a fast GPU needs for a small batch or a small model. A graph holds them all.
"""
from collections import Counter

import torch

from training.step import compute_gradients

# calls before a batch of these shapes is captured: compilers and libraries choose kernels meanwhile
WARM_UP = 3


class GraphedGradients:
    """`step.compute_gradients` of one model, captured once for each set of shapes and replayed.

    The results are the same. What is captured keeps its memory: parameters must stay where they
    are, and gradients are valid until the next call.
    """

    def __init__(self):
        self._calls = Counter()
        self._captured = {}      # {shapes: _Captured}

    def __call__(self, model, batch, parameters, **options):
        """As `step.compute_gradients`, with the same options in every call."""
        shapes = tuple(values.shape for values in batch)
        if shapes not in self._captured:
            self._calls[shapes] += 1
            if self._calls[shapes] <= WARM_UP:
                return compute_gradients(model, batch, parameters, **options)
            self._captured[shapes] = _Captured(model, batch, parameters, options)
        return self._captured[shapes].replay(batch, parameters)


class _Captured:
    """The graph of batches of some shapes, its inputs and its results."""

    def __init__(self, model, batch, parameters, options):
        self.inputs = [values.to(options["device"]) for values in batch]
        for p in parameters:
            p.grad = None    # so that the graph's memory holds them
        torch.cuda.empty_cache()    # the graph has memory of its own
        self.graph = torch.cuda.CUDAGraph()
        # a thread that prepares batches may go on meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.results = compute_gradients(model, self.inputs, parameters, **options)
        self.gradients = [p.grad for p in parameters]

    def replay(self, batch, parameters):
        for own, values in zip(self.inputs, batch):
            own.copy_(values, non_blocking=True)
        self.graph.replay()
        for p, gradient in zip(parameters, self.gradients):
            p.grad = gradient
        return self.results
