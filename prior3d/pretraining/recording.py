"""Recording of a function as a pair of CUDA graphs: one launch replays its forward pass, one its backward pass."""

import contextlib
import gc
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

Function = Callable[[Sequence[Tensor]], list[Tensor]]
"""A function of tensors that launches the same kernels at every call."""


class RecordingBroken(RuntimeError):
    """A recording broke off in the middle, and no earlier one draws from torch's generator any more."""


class GraphPair:
    """A function of tensors whose kernels are recorded once, and replayed at each call.

    A replay reads the current weights, running statistics and seed of torch's CUDA generator, from where they lie, and
    updates running statistics as a plain call does. Outputs and gradients lie in memory that the next replay writes
    again. The backward pass can run once per call. Recording itself changes no weights, statistics or generators.

    Args:
        function: maps tensors to tensors; reads no values on the host.
        inputs: tensors of the shapes of all calls to come.
        modules: the modules that `function` runs.
        wanted: numbers of the outputs that may get a gradient.
        fixed: addresses of storages that lie where they are at every call; inputs there are not copied.
        owns_gradients: whether every call returns gradients in memory of their own, as sums over several calls need.

    Raises:
        RuntimeError: the function cannot be recorded, for example because it waits for the device.
        RecordingBroken: that was seen too late; no other recording may be replayed any more.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        modules: Sequence[nn.Module],
        wanted: Collection[int],
        fixed: Collection[int] = (),
        owns_gradients: bool = False,
    ) -> None:
        self._inputs = [_own(tensor, fixed) for tensor in inputs]
        self._owns_gradients = owns_gradients
        trains = torch.is_grad_enabled()
        parameters = [one for module in modules for one in module.parameters() if one.requires_grad]
        self._parameters = list(dict.fromkeys(parameters)) if trains else []
        self._moving = [number for number, tensor in enumerate(inputs) if tensor.requires_grad and trains]
        self._sources: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.differentiable: list[int] = []
        self._received: list[Tensor] = []
        self._gradients: list[Tensor | None] = []
        with _undone(modules, self._inputs[0].device), _new_leaves(modules, self._parameters) as leaves:
            self._sources = [*(self._inputs[number] for number in self._moving), *leaves]
            self._forward, self._backward = self._record(function, wanted)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Replay on inputs of the recorded shapes, and return the outputs."""
        self._fill(inputs)
        if self.differentiable:
            return list(_Replay.apply(self, *(inputs[number] for number in self._moving), *self._parameters))
        self._forward()
        return [output.detach() for output in self.outputs]

    def differentiate(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Replay the backward pass.

        Args:
            gradients: gradient of each output; None for none.

        Returns:
            Gradients of the inputs that require one, then of the parameters.
        """
        given = [(self._received[place], gradients[number]) for place, number in enumerate(self.differentiable)]
        copy_all([(own, gradient) for own, gradient in given if gradient is not None])
        if missing := [own for own, gradient in given if gradient is None]:
            torch._foreach_zero_(missing)
        self._backward()
        if not self._owns_gradients:
            return [None if gradient is None else gradient.detach() for gradient in self._gradients]
        copies = [None if gradient is None else torch.empty_like(gradient) for gradient in self._gradients]
        pairs = zip(copies, self._gradients, strict=True)
        copy_all([(copy, gradient) for copy, gradient in pairs if copy is not None])
        return copies

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        pairs = zip(self._inputs, inputs, strict=True)
        copy_all([(own.detach(), tensor.detach()) for own, tensor in pairs if not _is_same(own, tensor)])

    def _record(self, function: Function, wanted: Collection[int]) -> tuple[Callable[[], None], Callable[[], None]]:
        """Record both passes; return functions that replay them."""
        device = self._inputs[0].device
        caller, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        gc.collect()  # a graph that is freed during a recording would end it
        stream.wait_stream(caller)
        try:
            with torch.cuda.stream(stream):
                self._try(function, wanted)  # kernels are chosen and compiled, workspaces allocated
                with _refusing_waits():  # while recording, a wait would leave torch's generator unusable
                    self._try(function, wanted)
            try:
                self._capture(function, wanted, forward, backward, stream)
            except RuntimeError as error:
                _renew_generator(device)
                raise RecordingBroken(str(error)) from error
        finally:
            torch.cuda.set_stream(caller)  # torch 2.11 does not do so if the end of a recording fails
            caller.wait_stream(stream)
        return forward.replay, backward.replay

    def _capture(
        self,
        function: Function,
        wanted: Collection[int],
        forward: torch.cuda.CUDAGraph,
        backward: torch.cuda.CUDAGraph,
        stream: torch.cuda.Stream,
    ) -> None:
        # thread_local: the loader's thread may pin memory meanwhile
        with torch.cuda.graph(forward, stream=stream, capture_error_mode="thread_local"):
            outputs = function(self._inputs)
        self._keep_outputs(outputs, wanted)
        if self.differentiable:
            pool = forward.pool()
            with torch.cuda.graph(backward, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._gradients = self._differentiate(outputs)

    def _try(self, function: Function, wanted: Collection[int]) -> None:
        outputs = function(self._inputs)
        self._keep_outputs(outputs, wanted)
        if self.differentiable:
            self._differentiate(outputs)

    def _keep_outputs(self, outputs: list[Tensor], wanted: Collection[int]) -> None:
        self.outputs = [output.detach() for output in outputs]
        self.differentiable = [number for number in sorted(wanted) if outputs[number].requires_grad]
        if not self._received:  # not while recording: the graph would fill them with zeros at each replay
            self._received = [torch.zeros_like(self.outputs[number]) for number in self.differentiable]

    def _differentiate(self, outputs: list[Tensor]) -> list[Tensor | None]:
        chosen = [outputs[number] for number in self.differentiable]
        # As in a plain backward pass: no autocast. In this thread, which is the one that records.
        with (
            torch.autocast(self._inputs[0].device.type, enabled=False),
            torch.autograd.set_multithreading_enabled(False),
        ):
            gradients = torch.autograd.grad(chosen, self._sources, self._received, allow_unused=True)
        laid_out = [_laid_out(one, source) for one, source in zip(gradients, self._sources, strict=True)]
        return _apart(laid_out, self._received)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, recorded: GraphPair, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        ctx.set_materialize_grads(False)
        recorded._forward()
        outputs = tuple(output.detach() for output in recorded.outputs)
        others = set(range(len(outputs))) - set(recorded.differentiable)
        ctx.mark_non_differentiable(*(outputs[number] for number in others))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.recorded.differentiate(gradients)


@torch.no_grad()
def copy_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the second tensor of each pair into the first, in one launch per pair of types."""
    by_type: dict[tuple[torch.dtype, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in pairs:
        targets, sources = by_type.setdefault((target.dtype, source.dtype), ([], []))
        targets.append(target)
        sources.append(source)
    for targets, sources in by_type.values():
        torch._foreach_copy_(targets, sources)


def _own(tensor: Tensor, fixed: Collection[int]) -> Tensor:
    """Return the tensor at which a recording reads an input: itself where it is fixed, else a copy."""
    is_fixed = tensor.untyped_storage().data_ptr() in fixed
    own = tensor.detach() if is_fixed else tensor.detach().clone()
    return own.requires_grad_(tensor.requires_grad)


def _is_same(own: Tensor, tensor: Tensor) -> bool:
    return own.data_ptr() == tensor.data_ptr() and own.stride() == tensor.stride()


def _laid_out(gradient: Tensor | None, source: Tensor) -> Tensor | None:
    """Return a gradient in the layout of its parameter; torch would else copy each one in every backward pass."""
    if gradient is None or gradient.stride() == source.stride() or not source.is_contiguous():
        return gradient
    return gradient.contiguous()


def _apart(gradients: Sequence[Tensor | None], others: Sequence[Tensor]) -> list[Tensor | None]:
    """Return gradients of which no two share memory, nor with `others`: each may be scaled in place."""
    taken = {one.untyped_storage().data_ptr() for one in others}
    apart = []
    for gradient in gradients:
        if gradient is not None and gradient.untyped_storage().data_ptr() in taken:
            gradient = gradient.clone()
        if gradient is not None:
            taken.add(gradient.untyped_storage().data_ptr())
        apart.append(gradient)
    return apart


@contextlib.contextmanager
def _undone(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Put buffers and generators back at the end: trial runs update running statistics and draw."""
    buffers = list(dict.fromkeys(buffer for module in modules for buffer in module.buffers()))
    kept = [buffer.detach().clone() for buffer in buffers]
    on_gpu = device.type == "cuda"
    states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None
    try:
        yield
    finally:
        copy_all(list(zip(buffers, kept, strict=True)))
        torch.set_rng_state(states[0])
        if on_gpu:
            torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def _new_leaves(modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Let modules read their parameters through new leaves of the same memory, which are returned.

    A backward pass makes the stream on which a parameter was first used wait for the one that computes its gradient,
    for as long as anyone holds a graph of that use. For a parameter of earlier steps that is the default stream, and
    CUDA ends a recording for which the default stream would wait.
    """
    leaves = {id(one): nn.Parameter(one.detach()) for one in parameters}
    places = [
        (owner, name, parameter)
        for module in modules
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None and id(parameter) in leaves
    ]
    try:
        for owner, name, parameter in places:
            owner._parameters[name] = leaves[id(parameter)]
        yield [leaves[id(one)] for one in parameters]
    finally:
        for owner, name, parameter in places:
            owner._parameters[name] = parameter


def _renew_generator(device: torch.device) -> None:
    """Give torch's generator a new state: after a recording that failed, the old one refuses to draw outside of one."""
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.default_generators[index].graphsafe_set_state(torch.Generator(device))


@contextlib.contextmanager
def _refusing_waits() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*prototype feature.*")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
