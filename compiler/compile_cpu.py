"""One segment to one shared object for CPU, by AOTInductor.

Runs in a process of its own (see lower.py): Inductor reads global configuration, and a crash
of a compiler must not take the build with it. Everything that decides the result is in the
form, the target and this file; all three are in the segment's key.
"""

import json
import os
import shlex
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from ..artifacts.target import Target
from ..kernels import library, ops
from ..kernels.shims import C_SHIMS
from . import segment_graph

EXAMPLE_SIZES = (512, 61, 37, 23)
"""Example values of d0, d1, ...: fixed, because Inductor's heuristics look at them. `example_size` has more."""

NO_PATHS = ("-Wno-builtin-macro-redefined", '-D__FILE__="segment"')
"""Flags of the C++ compiler, the same in every build, so that headers compiled in advance fit: checks in the code name their file,
whose path is another one each time."""

SETTINGS: dict[str, Any] = {
    # What is left to Inductor are elementwise operators and norms over a few rows: cheaper on one thread than a
    # thread pool's barrier, which on a busy machine waits for milliseconds. Our kernels bring their own team.
    "cpp.threads": 1,
    "cpp.enable_kernel_profile": False,
    "cpp.cxx": (None, library.COMPILER),
    "cpp.vec_isa_ok": True,  # the target decides; this machine need not be able to run the code
    "cpp.weight_prepack": False,
    "aot_inductor.package": False,
    "aot_inductor.compile_wrapper_opt_level": "O1",
    "aot_inductor.debug_symbols": False,
    "aot_inductor.enable_frame_pointer": False,
    "aot_inductor.enable_line_tables": False,
    # Else it is a hash of paths.
    "aot_inductor.model_name_for_generated_files": "segment",
    "fx_graph_cache": False,
    "comprehensive_padding": False,
    "assume_aligned_inputs": False,
    "compile_threads": 1,
}


def compile_form(form_text: str, target_name: str, output: Path, sources: Path | None = None) -> None:
    """Compile a canonical form (segment_graph.text) for a CPU target into `output`, a shared object.

    sources: a directory that also receives the generated C++. Raises whatever Inductor or the
    C++ compiler raises.
    """
    warnings.simplefilter("ignore", FutureWarning)  # torch's, about torch
    scratch = Path(tempfile.mkdtemp(dir=_unquoted(output.parent), prefix="inductor-"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "inductor")
    try:
        target = Target.parse(target_name)
        built = _aot_compile(form_text, target, scratch / "segment.so")
        shutil.copyfile(built, output)
        if sources is not None:
            sources.mkdir(parents=True, exist_ok=True)
            for source in scratch.rglob("*.cpp"):
                shutil.copyfile(source, sources / source.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def example_size(dimension: int) -> int:
    """The example value of symbolic dimension number `dimension`: no two are equal."""
    return EXAMPLE_SIZES[dimension] if dimension < len(EXAMPLE_SIZES) else 63 + 2 * dimension


def _unquoted(directory: Path) -> Path | None:
    """`directory`, or None (where the system has temporary files) if a shell wants quotes around it: Inductor writes commands without."""
    return directory if shlex.quote(str(directory)) == str(directory) else None


def _aot_compile(form_text: str, target: Target, output: Path) -> Path:
    import torch
    from torch._inductor import aot_compile, cpu_vec_isa
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental import _config as symbolic_config
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    isa = cpu_vec_isa.VecAVX512() if target.vector_bits == 512 else cpu_vec_isa.VecAVX2()
    isa._arch_flags = " ".join([type(isa)._arch_flags, *map(shlex.quote, NO_PATHS)])  # without what its constructor found on this machine
    cpu_vec_isa.valid_vec_isa_list = lambda: [isa]  # type: ignore[assignment]
    ops.define()
    ops.register_fakes()
    form = json.loads(form_text)
    module = segment_graph.decode(form)
    names = sorted({size for _, sizes in form["inputs"] for size in sizes if isinstance(size, str)}, key=lambda name: int(name[1:]))
    dims = {name: torch.export.Dim(name, min=1) for name in names}
    sizes = {name: example_size(dimension) for dimension, name in enumerate(names)}
    with FakeTensorMode(shape_env=ShapeEnv()):  # weights are inputs: real ones would take the layer's memory
        shapes = [(getattr(torch, dtype), [sizes.get(size, size) for size in shape]) for dtype, shape in form["inputs"]]
        args = tuple(torch.empty(shape, dtype=dtype) for dtype, shape in shapes)
    dynamic = tuple({axis: dims[size] for axis, size in enumerate(shape) if isinstance(size, str)} for _, shape in form["inputs"])
    with torch.no_grad(), symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        exported = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
        shims = {getattr(torch.ops.engine, name).default: [declaration] for name, declaration in C_SHIMS.items()}
        options = SETTINGS | {
            "aot_inductor.custom_ops_to_c_shims": shims,
            "cpp.simdlen": target.vector_bits,
            "cpp.march": target.level,
            "aot_inductor.output_path": str(output),
        }
        return Path(str(aot_compile(exported.module(), args, options=options)))
