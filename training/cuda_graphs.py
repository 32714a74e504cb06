"""The gradient of a step as one CUDA graph, which the host launches at once.

A step of DiT-XL/2 consists of some 2,000 kernels. Launching them one by one takes the host about
40 ms, longer than a fast GPU needs for a small batch or a small model. A graph holds them all.
"""
import torch

from training.step import compute_gradients

# calls before a batch of these shapes is captured: compilers and libraries choose kernels meanwhile
WARM_UP = 3


class GraphedGradients:
    """`step.compute_gradients` of one model, captured for the shapes of its batches and replayed.

    The results are the same. Parameters, the moving average and the loss scale must stay where
    they are in memory; gradients are valid until the next call. Batches of other shapes are
    captured in turn, as when the last steps of a run compute all tokens. A graph keeps the memory
    of a whole step, so there is one at a time.
    """

    def __init__(self):
        self._shapes = None
        self._calls = 0             # with batches of these shapes
        self._captured = None

    def __call__(self, model, batch, parameters, **options):
        """As `step.compute_gradients`.

        :param model, parameters, options: the same in every call, as a graph contains them
        :raises RuntimeError: the device is out of memory, or an operation cannot be captured
        """
        shapes = tuple(values.shape for values in batch)
        if shapes != self._shapes:
            self._shapes = shapes
            self._calls = 0
            self._captured = None   # before the first step of the other shapes needs its memory
        self._calls += 1
        if self._calls <= WARM_UP:
            return compute_gradients(model, batch, parameters, **options)
        if self._captured is None:
            self._captured = _Captured(model, batch, parameters, options)
        return self._captured.replay(batch, parameters)


class _Captured:
    """A graph, its inputs and its results; arguments as of GraphedGradients' call."""

    def __init__(self, model, batch, parameters, options):
        self.inputs = [values.to(options["device"]) for values in batch]
        for p in parameters:
            p.grad = None    # so that the graph's memory holds them
        self.graph = torch.cuda.CUDAGraph()
        # threads that prepare batches may go on meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.results = compute_gradients(model, self.inputs, parameters, **options)
        self.gradients = [p.grad for p in parameters]

    def replay(self, batch, parameters):
        """Computes another batch of the same shapes; returns what `compute_gradients` returns."""
        for own, values in zip(self.inputs, batch):
            own.copy_(values, non_blocking=True)
        self.graph.replay()
        for p, gradient in zip(parameters, self.gradients):
            p.grad = gradient
        return self.results
