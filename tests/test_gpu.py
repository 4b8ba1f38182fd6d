"""What can be known of a GPU without one: no tensor stays on the wrong side, and memory that runs out is given back."""

import gc
import os
import subprocess
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import MagicMock, call

import pytest
import torch
from test_training import DATA, PAPER_NETWORK, SMALL_NETWORK
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import evaluation
import model
import utils
import workers
from model import PAPER_RECIPE, Child, Graphed, Recipe, on_device, one_cycle, summarize, train_child, training_steps

RECIPES = {
    "Muon": replace(evaluation.EVALUATION_RECIPE, batch_size=16, epochs=3, flip=True),
    "Adam": Recipe(batch_size=16, epochs=3, optimizer="adam"),
    "SGD": replace(PAPER_RECIPE, batch_size=16, epochs=3, best_of=1),
}


WITHOUT_A_SHAPE = (torch.ops.aten._fused_adam_.tensor_lr, torch.ops.aten._fused_sgd_.tensor_lr)  # and result


class Pretended(TorchDispatchMode):
    """CUDA tensors that have shapes, but no content; notes in which step something is on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.tensors, self.children, self.steps, self.on_cpu = FakeTensorMode(allow_non_fake_inputs=True), [], 0, set()
        self.rates = []  # that were written into the tensors of learning rates
        monkeypatch.setattr(model, "Child", self.make)
        monkeypatch.setattr(model, "Graphed", lambda update: update)
        monkeypatch.setattr(torch.Tensor, "backward", lambda loss: self.backward(loss))

    def make(self, *args) -> Child:
        with unset_fake_temporarily():  # only what is real can be moved
            self.children.append(Child(*args))
        return self.children[-1]

    def backward(self, loss: torch.Tensor) -> None:
        """In the place of the real one, which wants a device."""
        assert loss.is_cuda
        for p in self.children[-1].parameters():
            p.grad = torch.ones_like(p)
        self.steps += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.fill_.Scalar and args[0].is_cuda and not args[0].dim():
            self.rates.append(args[1])
        result = None if function in WITHOUT_A_SHAPE else function(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in tree_leaves((args, kwargs, result))):
            self.on_cpu.add(self.steps)
        return result

    def __enter__(self):
        on_device.cache_clear()
        self.tensors.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.tensors.__exit__(*raised)
        on_device.cache_clear()


@pytest.mark.parametrize("architecture", [SMALL_NETWORK, PAPER_NETWORK], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_a_training_stays_on_the_gpu(monkeypatch, name, architecture):
    """All steps, and measuring up to its first number, which has no value here; in between nothing is on the CPU."""
    _, steps_per_epoch, num_steps = training_steps(RECIPES[name], len(DATA.train.labels))
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    with Pretended(monkeypatch) as gpu, pytest.raises(DataDependentOutputException) as stopped:
        train_child(architecture, on_device(DATA, "cuda"), RECIPES[name], 0)
    assert gpu.steps == num_steps == 3 * steps_per_epoch == 6
    recipe = RECIPES[name]
    peaks = [recipe.lr, recipe.filter_lr][: 1 + (name == "Muon")]
    shares = [one_cycle((i + 0.5) / 6, recipe.warmup) if recipe.schedule == "one_cycle" else 1 for i in range(6)]
    assert gpu.rates == [peak * share for share in shares for peak in peaks]
    assert any("top_k_accuracy" in entry.name for entry in stopped.traceback)
    assert {step % steps_per_epoch for step in gpu.on_cpu} == {0}  # what an epoch needs is drawn and moved at once
    assert all(p.is_cuda and p.grad is None for p in gpu.children[0].parameters())
    assert torch.backends.cudnn.deterministic
    with gpu:
        assert summarize(gpu.children[0])[-1].output_shape == (7,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", [SMALL_NETWORK, PAPER_NETWORK], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_steps_as_a_graph_give_the_same_weights(monkeypatch, name, architecture):
    graphed = train_child(architecture, on_device(DATA, "cuda"), RECIPES[name], 0)
    monkeypatch.setattr(model, "Graphed", lambda update: update)
    step_by_step = train_child(architecture, on_device(DATA, "cuda"), RECIPES[name], 0)
    pairs = zip(graphed.child.parameters(), step_by_step.child.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) and graphed[1:3] == step_by_step[1:3]


def test_a_graph_is_given_the_tensors_of_each_call(monkeypatch):
    """A pretended one, which holds what is called while it is captured and does it in each replay."""
    done, captured, ahead, own, other = [], [], MagicMock(), MagicMock(), MagicMock()

    class Graph:
        capturing = False

        def replay(self) -> None:
            done.append(("replayed", *captured[0].tolist()))

    @contextmanager
    def capture(graph, stream):
        assert graph is function.graph and stream is own
        Graph.capturing = True
        yield
        Graph.capturing = False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: ahead)
    monkeypatch.setattr(torch.cuda, "stream", other)
    monkeypatch.setattr(model, "capture_stream", lambda: own)
    function = Graphed(lambda x: captured.append(x) if Graph.capturing else done.append(("called", *x.tolist())))
    for i in range(6):
        function(torch.tensor([i]))
    assert done == [("called" if i < 3 else "replayed", i) for i in range(6)] and len(captured) == 1
    assert other.call_args_list == [call(own)] * 3  # what loads runs there, too, and both wait for each other
    assert own.wait_stream.call_args_list == [call(ahead)] * 3 and ahead.wait_stream.call_args_list == [call(own)] * 3


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError("Unable to allocate 9 GiB"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_a_training_that_runs_out_of_memory_gives_it_back(monkeypatch, error):
    """Before the cache of the GPU is emptied, and without a run of the garbage collector."""
    made, emptied = [], []

    def make(*args):
        child = Child(*args)
        made.append(weakref.ref(child))
        return child

    def fail(loss):
        raise type(error)(*error.args)

    monkeypatch.setattr(model, "Child", make)
    monkeypatch.setattr(torch.Tensor, "backward", fail)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(made[0]() is None))
    gc.disable()
    try:
        with pytest.raises(workers.TaskFailed) as failed:
            workers._call(lambda _: train_child(SMALL_NETWORK, DATA, Recipe(), 0), ())
    finally:
        gc.enable()
    assert emptied == [True]
    reason = str(error).split("\n")[0] or "MemoryError"
    assert str(failed.value) == f"out of memory: {reason}"


def test_memory_that_runs_out_while_a_graph_is_recorded_ends_the_process(monkeypatch):
    def end(code):
        raise SystemExit(code)

    def record(_):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit, match="1"):
        workers._call(record, ())


def test_what_pytorch_says_when_memory_is_short_is_recognised():
    """The real message, of an allocation that no machine can make."""
    with pytest.raises(workers.TaskFailed, match="out of memory"):
        workers._call(lambda _: torch.empty(2**60, dtype=torch.uint8), ())


def test_the_context_is_made_before_a_task(monkeypatch):
    with FakeTensorMode():
        made, zeros = [], torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: made.append(zeros(*args, **kwargs)) or made[-1])
        workers._prepare_process("cuda")
        assert [tensor.device.type for tensor in made] == ["cuda"]

    def fail(*_, **__):
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "zeros", fail)
    workers._prepare_process("cuda")  # the task will say it


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_can_be_rehearsed():
    """Two minutes: all of it, in small."""
    program = [sys.executable, "-m", "benchmarks.gpu", "--rehearsal"]
    result = subprocess.run(program, cwd=utils.ROOT, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "REHEARSAL" in result.stdout and "an epoch of 160 images" in result.stdout


def test_the_card_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    machine = utils.environment("cuda")["machine"]
    assert machine["gpu"] == "NVIDIA A100" and machine["cudnn_deterministic"] is True
    assert "gpu" not in utils.environment()["machine"]  # and nothing asks the driver
