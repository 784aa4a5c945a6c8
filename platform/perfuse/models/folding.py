"""Batch normalisations folded into the convolutions before them: the same answer from fewer passes over the pixels."""

from collections import Counter
from copy import deepcopy
from typing import TypeGuard

from timm.layers import BatchNormAct2d, Conv2dSame
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _Tracer(fx.Tracer):
    """Shows convolutions and normalisations of any kind whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network, in evaluation mode, each batch normalisation folded where a convolution feeds it alone.

    Its weights must have full precision, for the products are rounded. Which convolution feeds which normalisation is
    read from a trace (torch.fx); of a module whose program depends on its input, from those of its parts.
    """
    copy = deepcopy(network).eval()
    places = Counter(id(module) for _, module in copy.named_modules(remove_duplicate=False))
    _fold(copy, {module for module in copy.modules() if places[id(module)] > 1})
    return copy


def _fold(module: nn.Module, shared: set[nn.Module]) -> None:
    if not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:  # noqa: BLE001 - whatever a module's own code raises when it is shown no numbers
        for part in module.children():
            _fold(part, shared)
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        first, second = str(before.target), str(node.target)
        convolution, norm = module.get_submodule(first), module.get_submodule(second)
        alone = calls[first] == calls[second] == 1 and not shared & {convolution, norm}
        if alone and _is_convolution(convolution) and _is_norm(norm) and norm.running_mean is not None:
            module.set_submodule(first, fuse_conv_bn_eval(convolution, norm))
            module.set_submodule(second, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())


def _is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Of known classes only: another may do something of its own with its weights."""
    return type(module) in {nn.Conv2d, Conv2dSame}


def _is_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return type(module) in {nn.BatchNorm2d, BatchNormAct2d}
