"""What others offer for the network of ``techniques.py``: the same samples, the same budget.

    python benchmarks/techniques_rivals.py --model FILE.py:FUNCTION --weights FILE --data-dir DIR

torch-pruning alone, ONNX Runtime's own quantizer, torchao (quantization of an exported program,
after training and while training) and brevitas, each as its documents say, at int8 or at the
strengths that stand in the table of ``techniques.py``. One that is not installed is a line that
says so: torchao and brevitas are no dependency of ours. Where they train, it is by the loop, the
loss and the images of ``techniques.py``. Rows go to its file.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from onnxruntime import quantization
from techniques import (
    BUDGET,
    EXAMPLE,
    TUNING,
    Measure,
    accuracy_of,
    first_of,
    inputs,
    keeper,
    page,
    parse,
    session_from,
    session_of,
    times,
)
from torch import nn

from isthmus.data import Dataset
from isthmus.export.export import Program, write_program
from isthmus.graph import capture
from isthmus.study.compress import samples_of
from isthmus.train import accuracy, tune

_BATCH = 128
Rival = Callable[[nn.Module, Dataset, bool, Any], Measure]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments = parse(parser)
    if (loaded := inputs(arguments)) is None:
        return
    model, data = loaded
    keep, base = keeper(arguments.rows), session_of(model)
    for name, rival, tunings in RIVALS:
        for tuned in tunings:
            key = {"group": "rival", "chain": name, "tuned": BUDGET * tuned, "seed": 0}
            keep(key, lambda rival=rival, tuned=tuned: tried(rival, model, data, tuned, base))
    page(arguments.rows)


def tried(rival: Rival, model: nn.Module, data: Dataset, tuned: bool, base: Any) -> Measure:
    """Return what a rival comes to, or why it comes to nothing."""
    torch.manual_seed(0)
    try:
        return rival(copy.deepcopy(model).eval(), data, tuned, base)
    except ImportError as error:
        return {"skipped": f"not installed ({error})"}
    except Exception as error:  # whatever the others raise
        return {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def trained(made: nn.Module, model: nn.Module, data: Dataset, *, seen: int = BUDGET) -> None:
    """Train what a rival made, as ``techniques.py`` trains."""
    tune(made, copy.deepcopy(model).eval(), first_of(data, seen), replace(TUNING, seed=0))


def samples(model: nn.Module, data: Dataset) -> Sequence[torch.Tensor]:
    """Return the 512 training images that techniques look at, in batches."""
    return samples_of(model, EXAMPLE, data).inputs[0].split(_BATCH)


def saved_bytes(model: nn.Module) -> int:
    return len(safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}))


def in_runtime(program: bytes, data: Dataset, base: Any) -> Measure:
    """Return accuracy and time of a program in ONNX Runtime, and its size."""
    session = session_from(program)
    share = accuracy_of(session, data)
    return {"accuracy": share, "stored_bytes": len(program), **times(session, base, data)}


def torch_pruning(
    model: nn.Module, data: Dataset, tuned: bool, base: Any, *, keep: float
) -> Measure:
    """Remove channels by the L2 norm of all that depends on them."""
    library: Any = import_module("torch_pruning")
    whole = copy.deepcopy(model)
    library.pruner.BasePruner(
        model,
        EXAMPLE,
        importance=library.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - keep,
        ignored_layers=[model.linear],
    ).step()
    model.zero_grad(set_to_none=True)
    if tuned:
        trained(model, whole, data)
    session = session_of(model.eval())
    return {
        "accuracy": accuracy_of(session, data),
        "macs": capture(model, EXAMPLE).macs,
        "stored_bytes": saved_bytes(model),
        "stored_as": "float weights (safetensors)",
        **times(session, base, data),
    }


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, name: str, batches: Sequence[torch.Tensor]) -> None:
        self.batches = iter([{name: x.numpy()} for x in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def onnxruntime_static(
    model: nn.Module, data: Dataset, tuned: bool, base: Any, *, method: str
) -> Measure:
    """Quantize an exported program to int8, weights by channel, with 512 samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "program"
        file, ready, made = (folder / f"{step}.onnx" for step in ("whole", "ready", "int8"))
        write_program(Program(None, model, None), EXAMPLE, file, device="this machine")
        quantization.quant_pre_process(file, ready)
        quantization.quantize_static(
            ready,
            made,
            _Reader(session_from(file.read_bytes()).get_inputs()[0].name, samples(model, data)),
            per_channel=True,
            calibrate_method=quantization.CalibrationMethod[method],
        )
        program = made.read_bytes()
    return {**in_runtime(program, data, base), "stored_as": "the program (ONNX)"}


def torchao(model: nn.Module, data: Dataset, tuned: bool, base: Any) -> Measure:
    """Quantize to int8 by torchao's quantizer for x86, while training where that is asked for."""
    del base  # what it makes runs in torch
    pt2e: Any = import_module("torchao.quantization.pt2e")
    whole_steps: Any = import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86: Any = import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    config = x86.get_default_x86_inductor_quantization_config(is_qat=tuned)
    quantizer = x86.X86InductorQuantizer().set_global(config)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(
        model.train(tuned), EXAMPLE, dynamic_shapes=shapes, strict=False
    ).module()
    prepare = whole_steps.prepare_qat_pt2e if tuned else whole_steps.prepare_pt2e
    made = prepare(program, quantizer)
    pt2e.allow_exported_model_train_eval(made)
    if tuned:
        trained(made, model, data)
    else:
        with torch.no_grad():
            for x in samples(model, data):
                made(x)
    made = whole_steps.convert_pt2e(made)
    pt2e.allow_exported_model_train_eval(made)
    made.eval()
    return {
        "accuracy": accuracy(made, data.x_test, data.y_test),
        "stored_bytes": saved_bytes(made),
        "stored_as": "its state (safetensors), floats too; not timed: needs a compiler",
    }


def brevitas(model: nn.Module, data: Dataset, tuned: bool, base: Any) -> Measure:
    """Quantize to int8 by brevitas's flow for a traced graph, and learn on where asked to."""
    del base  # what it makes runs in torch
    flow: Any = import_module("brevitas.graph.quantize")
    calibrate: Any = import_module("brevitas.graph.calibrate")
    made = flow.quantize(flow.preprocess_for_quantize(copy.deepcopy(model)))
    with torch.no_grad(), calibrate.calibration_mode(made):
        for x in samples(model, data):
            made(x)
    if tuned:
        trained(made, model, data)
    weights = sum(p.numel() for p in made.parameters() if p.ndim > 1)
    others = sum(p.numel() for p in made.parameters() if p.ndim < 2)
    return {
        "accuracy": accuracy(made.eval(), data.x_test, data.y_test),
        "stored_bytes": weights + 4 * others,
        "stored_as": "counted: a byte for each weight; it computes in floats here, so no time",
    }


RIVALS: tuple[tuple[str, Rival, tuple[bool, ...]], ...] = (
    *(
        (f"onnxruntime quantize_static, {how}", partial(onnxruntime_static, method=how), (False,))
        for how in ("MinMax", "Entropy")
    ),
    ("torchao, x86 int8", torchao, (False, True)),
    ("brevitas, int8", brevitas, (False, True)),
    *(
        (f"torch-pruning alone, keep={keep}", partial(torch_pruning, keep=keep), (False, True))
        for keep in (0.9, 0.75)
    ),
)

if __name__ == "__main__":
    main()
