"""What is left of a segment between our operators, ATen operators, through Inductor to Triton kernels.

Inductor fuses and writes the kernels; its wrapper code, which would allocate and launch, is not
generated: a wrapper class of ours reads Inductor's own list of lines and keeps allocations and
launches as data.
"""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx
from torch._inductor import config
from torch._inductor.codegen import common, wrapper
from torch._inductor.codegen.common import FileBackedGraphModule
from torch._inductor.codegen.cuda_combined_scheduling import CUDACombinedScheduling
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import LineContext
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.proxy_tensor import make_fx

from ...errors import BuildError
from ...kernels.nvidia.launch import Launch, Size, Tensor

SETTINGS: dict[str, Any] = {
    "fx_wrapper": True,
    "joint_graph_constant_folding": False,  # it would run on the device
    "triton.autotune_pointwise": False,
    "deterministic": True,  # of a reduction's configurations one is chosen without timing them
    "assert_indirect_indexing": False,
    "allow_buffer_reuse": False,  # memory is planned for a whole step at once, later
    "inplace_buffers": False,
    "size_asserts": False,
    "compile_threads": 1,
    "fx_graph_cache": False,
    "force_disable_caches": True,
    "comprehensive_padding": False,
}


@dataclass(frozen=True, kw_only=True)
class Island:
    """launches over buffers; where each result lies; and the source of every kernel, by its function's module."""

    launches: list[Launch]
    outputs: list[Tensor]
    sources: dict[str, str]


def lower_island(
    function: Callable[..., Sequence[torch.Tensor]],
    values: Sequence[torch.Tensor],
    inputs: Sequence[Tensor],
    *,
    fake_mode: FakeTensorMode,
    allocate: Callable[[str, tuple[Size, ...]], Tensor],
    scratch: Path,
) -> Island:
    """Lower a pure function of tensors.

    values: the inputs as fake tensors on cuda:0; inputs: where they lie; scratch: a new directory. Sizes in the result are in
    the symbols of the fake tensors. Raises BuildError for anything that is not a Triton kernel.
    """
    with fake_mode, torch.no_grad(), symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        graph = make_fx(function, decomposition_table=select_decomp_table(), _allow_non_fake_inputs=True)(*values)
    lines = _inductor_lines(graph, fake_mode)
    tensors = dict(zip([node.name for node in graph.graph.find_nodes(op="placeholder")], inputs, strict=True))
    reader = _Reader(tensors, lines.sizes, allocate, scratch)
    for line in lines.lines:
        reader.read(line)
    return Island(launches=reader.launches, outputs=[reader.output(node) for node in lines.outputs], sources=reader.sources)


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """sizes: what Inductor would compute before it launches anything, by the symbols that stand for it in the lines."""

    lines: list[Any]
    outputs: list[Any]
    sizes: dict[sympy.Symbol, sympy.Expr]


class _Wrapper(wrapper.PythonWrapperCodegen):
    """Keeps what it is told to do, and generates nothing."""

    supports_caching = False
    captured: _Lines | None = None

    @classmethod
    def create(cls, is_subgraph: bool, subgraph_name: Any, parent_wrapper: Any, partition_signatures: Any = None) -> "_Wrapper":
        return cls()

    def codegen_inputs(self) -> None:
        pass

    def register_alignment_check_inputs(self) -> None:
        pass

    def codegen_deferred_alignment_copies(self, input_names: Any) -> None:
        pass

    def _generate(self, is_inference: bool) -> Any:
        self.run_wrapper_ir_passes(is_inference)
        sizes = dict(V.graph.sizevars.inv_precomputed_replacements)
        type(self).captured = _Lines(lines=list(self.lines), outputs=list(self.get_graph_outputs()), sizes=sizes)
        return FileBackedGraphModule(fx.GraphModule(torch.nn.Module(), fx.Graph()), lambda *args: None), None


def _inductor_lines(graph: fx.GraphModule, fake_mode: FakeTensorMode) -> _Lines:
    common.init_backend_registration()
    common.register_backend_for_device("cuda", CUDACombinedScheduling, wrapper.PythonWrapperCodegen, None, _Wrapper)
    examples = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
    with ExitStack() as stack:
        stack.enter_context(config.patch(SETTINGS))
        stack.enter_context(fake_mode)
        compile_fx_inner(graph, examples, fx_wrapper=True)
    captured, _Wrapper.captured = _Wrapper.captured, None
    if captured is None:
        raise BuildError("Inductor lowered a piece of the graph without asking for its wrapper")
    return captured


_IGNORED = (
    wrapper.CommentLine,
    wrapper.EnterDeviceContextManagerLine,
    wrapper.ExitDeviceContextManagerLine,
    wrapper.FreeLine,
    wrapper.FreeIfNotReusedLine,
    wrapper.NullLine,
    wrapper.SymbolicCallArgLine,
    LineContext,
)


class _Reader:
    """Turns Inductor's lines into launches."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        sizes: dict[sympy.Symbol, sympy.Expr],
        allocate: Callable[[str, tuple[Size, ...]], Tensor],
        scratch: Path,
    ) -> None:
        self.launches: list[Launch] = []
        self.sources: dict[str, str] = {}
        self._tensors = tensors
        self._sizes = sizes
        self._tuners: dict[str, Any] = {}
        self._allocate = allocate
        self._scratch = scratch

    def read(self, line: Any) -> None:
        match line:
            case wrapper.AllocateLine():
                self._allocate_buffer(line.node)
            case wrapper.KernelDefinitionLine():
                self._tuners[line.kernel_name] = self._load(line.kernel_name, line.kernel_body)
            case wrapper.KernelCallLine() if line.triton:
                self.launches.append(self._launch(self._tuners[line.kernel_name], list(line.call_args)))
            case _ if not isinstance(line, _IGNORED):
                raise BuildError(
                    f"Inductor wants something that no launch plan has: {type(line).__name__}",
                    hint="a part of the model is not covered by our operators; run with --debug-dump DIR and look at the graphs",
                )

    def output(self, node: Any) -> Tensor:
        """Where a result of the graph lies."""
        layout, base = node.get_layout(), self._tensors[node.get_name()]
        dtype = str(layout.dtype).removeprefix("torch.")
        shape, strides = (tuple(_plain(size) for size in sizes) for sizes in (layout.size, layout.stride))
        return Tensor(buffer=base.buffer, dtype=dtype, shape=shape, strides=strides, offset=_plain(layout.offset))

    def _allocate_buffer(self, node: Any) -> None:
        layout = node.get_layout()
        tensor = self._allocate(str(layout.dtype).removeprefix("torch."), tuple(layout.size))
        if tuple(layout.stride) != tensor.strides:
            raise BuildError(f"Inductor wants a buffer with strides {layout.stride}, not contiguous")
        self._tensors[node.get_name()] = tensor

    def _load(self, name: str, body: str) -> Any:
        """The kernel with its configuration. Triton reads a function's source from its file."""
        source = eval(body, {"async_compile": _Source})
        module_name = f"{self._scratch.name}_{name}"  # Inductor counts its kernels' names from 0 for every island
        path = self._scratch / f"{module_name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        head, _, rest = source.partition("triton_helpers.set_driver_to_gpu()")
        self.sources[module_name] = head + "@triton.jit" + rest.partition("@triton.jit")[2]
        return getattr(module, name)

    def _launch(self, tuner: Any, call_args: list[Any]) -> Launch:
        signature, fixed = tuner.triton_meta["signature"], tuner.triton_meta["constants"]
        (chosen,) = tuner.configs
        names = [name for name in signature if name not in chosen.kwargs]
        values = dict(zip(names, (self._value(arg) for arg in call_args), strict=True))
        passed = {name: value for name, value in values.items() if name not in fixed}
        _, grid = tuner._interpret_args_grid(tuple(values.values()), chosen)
        return Launch(
            function=tuner.fn,
            grid=tuple(sympy.sympify(size) for size in grid),
            arguments=passed,
            constants={**fixed, **chosen.kwargs},
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            integer_types={name: signature[name] for name, value in passed.items() if not isinstance(value, Tensor)},
        )

    def _value(self, arg: Any) -> Any:
        if isinstance(arg, str):
            return self._tensors[arg]
        size = arg.inner_expr if isinstance(arg, wrapper.SymbolicCallArg) else arg
        return size.xreplace(self._sizes) if isinstance(size, sympy.Expr) else size


class _Source:
    """Stands for Inductor's compiler while a kernel's definition is read: gives its source."""

    @staticmethod
    def triton(name: str, source: str, **options: Any) -> str:
        return source


def _plain(size: Any) -> Size:
    """A number as an integer: emitters make constants of sizes, and kernels have no use for sympy's."""
    return int(size) if sympy.sympify(size).is_Integer else size
