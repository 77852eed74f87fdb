"""A platform, a network and a plan as Stream reads them, so that a second opinion can be had.

References:
    Symons, Mei, Colleman, Houshmand, Karl, Verhelst, "Stream: design space exploration of
    layer-fused DNNs on heterogeneous dataflow accelerators", IEEE Transactions on Computers, 2024.
"""

from ast import literal_eval
from pathlib import Path

import onnx
from torch import Tensor, nn

from isthmus.export.export import Program, write_program
from isthmus.files import new_folder, write_bytes, write_json
from isthmus.graph import Graph
from isthmus.plan import Plan
from isthmus.platform.stream import plan_to_stream, to_stream

NETWORK_FILE = "network.onnx"
FILES = ("plan.json", "accelerator.yaml", "mapping.yaml", NETWORK_FILE, "cores/*.yaml")


def write_stream(
    path: Path, model: nn.Module, graph: Graph, example: tuple[Tensor, ...], plan: Plan
) -> None:
    """Write a folder for Stream; an older one is replaced.

    A node of the ONNX file goes to the device that runs the module it came from, the last of that
    module's operations where a plan divides it; one without module goes with the node before it.

    Args:
        path: The folder: ``accelerator.yaml`` with its ``cores/``, ``network.onnx`` with all
            shapes and one sample, ``mapping.yaml``, each node on its device, and the plan itself.
        model: What was planned.
        graph: Its capture.
        example: One tensor for each argument of forward.
        plan: Which device computes what.

    Raises:
        InputError: A device has no rate in fp32, or something else stands at ``path``.
        CaptureError: The model cannot be written as ONNX.
    """
    texts = to_stream(plan.platform)
    with new_folder(path, files=FILES) as folder:
        program = Program(None, model, None).eval()
        written = folder / "network" / NETWORK_FILE
        sample = tuple(x[:1] for x in example)
        write_program(program, sample, written, device="all devices", any_batch=False)
        network = onnx.shape_inference.infer_shapes(onnx.load(written))
        written.unlink()
        written.parent.rmdir()
        write_json(folder / FILES[0], plan)
        write_bytes(folder / NETWORK_FILE, network.SerializeToString())
        (folder / "cores").mkdir()
        texts["mapping.yaml"] = plan_to_stream(plan.platform, _devices(network, graph, plan))
        for name, text in texts.items():
            write_bytes(folder / name, text.encode())


def _devices(network: onnx.ModelProto, graph: Graph, plan: Plan) -> dict[str, str]:
    """Return the device of each node of the ONNX file."""
    of_node = {name: stage.device for stage in plan.stages for name in stage.nodes}
    of_module = {node.module: of_node[node.name] for node in graph.nodes}
    device = of_node[graph.nodes[0].name]
    found = {}
    for node in network.graph.node:
        facts = {entry.key: entry.value for entry in node.metadata_props}
        scopes = literal_eval(facts.get("pkg.torch.onnx.name_scopes", "[]"))
        modules = [scope.removeprefix("stage.") for scope in scopes]
        device = next((of_module[m] for m in reversed(modules) if m in of_module), device)
        found[node.name] = device
    return found
