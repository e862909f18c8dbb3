"""Where weights go when a folder is loaded: one device, several, the processor's memory, or disk.

The maps are accelerate's, and so are the hooks that bring a layer in when its turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from qwen_vl.errors import InputError

Device = torch.device | str | int
_INFERRED = ("auto", "balanced", "balanced_low_0", "sequential")
_DISK = "disk"


@dataclass(frozen=True, slots=True)
class Placement:
    """What a caller asks for.

    Attributes:
        device_map: a device for everything; "auto", "balanced", "balanced_low_0" or "sequential";
            or module name -> device, where "cpu" and "disk" are devices too.
        max_memory: device -> bytes, or text like "10GB"; for maps that are inferred.
        offload_folder: where what the map puts on disk is written.
        offload_buffers: bring buffers in and out as well; integers always are.
    """

    device_map: Device | Mapping[str, Device] | None = None
    max_memory: Mapping[Any, Any] | None = None
    offload_folder: Path | None = None
    offload_buffers: bool = False

    def resolve(self, model: nn.Module, dtype: torch.dtype) -> Places:
        """Decide for every module of a model, which may lie on meta.

        Raises:
            InputError: the map names what the model has not, or leaves weights out; disk is
                needed, and there is no folder for it.
        """
        found = self.device_map
        inferred = isinstance(found, str) and found in _INFERRED
        if inferred and (torch.cuda.is_available() or self.max_memory is not None):
            devices = self._inferred(model, dtype)
        elif isinstance(found, Mapping):
            devices = dict(found)
        else:
            devices = {"": torch.device("cpu") if inferred or found is None else _device(found)}
        _check_map(model, devices)
        if _DISK in devices.values() and self.offload_folder is None:
            raise InputError(
                "some weights go to disk, and there is no folder for them",
                hint="Pass offload_folder.",
            )
        devices = _disjoint(model, devices)
        return Places(devices, self.offload_folder, self.offload_buffers)

    def _inferred(self, model: nn.Module, dtype: torch.dtype) -> dict[str, Device]:
        accelerate = _accelerate()
        limits = None if self.max_memory is None else dict(self.max_memory)
        whole = cast("list[str]", model._no_split_modules)
        if self.device_map != "sequential":
            limits = accelerate.utils.get_balanced_memory(
                model,
                limits,
                whole,
                dtype=dtype,
                low_zero=self.device_map == "balanced_low_0",
            )
        made = accelerate.infer_auto_device_map(model, limits, whole, dtype=dtype)
        return cast("dict[str, Device]", dict(made))


@dataclass(frozen=True, slots=True)
class Places:
    """The device of every module, and what was written to disk."""

    devices: Mapping[str, Device]
    offload_folder: Path | None = None
    offload_buffers: bool = False
    _written: dict[str, dict[str, str]] = field(default_factory=dict)

    def put(self, name: str, tensor: Tensor) -> Tensor:
        """Move a weight to its place; of one that goes to disk, shape and dtype come back."""
        device = self._device_of(name)
        if device != _DISK:
            return tensor.to(_device(device))
        from safetensors.torch import save_file

        folder = cast("Path", self.offload_folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.safetensors"
        save_file({name: tensor.contiguous()}, file)
        self._written[name] = {
            "safetensors_file": str(file),
            "weight_name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
        return tensor.to("meta")

    def device_for_buffers(self, module: str) -> torch.device:
        """Where buffers that no file holds are made."""
        device = self._device_of(module)
        return torch.device("cpu") if device == _DISK else _device(device)

    def dispatch(self, model: nn.Module) -> None:
        """Let layers and their inputs find each other, where they are not all in one place."""
        if set(self.devices) == {""} and _DISK not in self.devices.values():
            return
        buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
        _accelerate().dispatch_model(
            model,
            dict(self.devices),
            offload_index=self._written or None,
            offload_buffers=self.offload_buffers or bool(buffers),
            skip_keys=cast("Any", model._skip_keys_device_placement),
        )

    def _device_of(self, name: str) -> Device:
        """The entry of the longest module name that `name` lies in."""
        while name not in self.devices:
            name = name.rpartition(".")[0]
        return self.devices[name]


def _accelerate() -> Any:
    # transformers refuses a bundle with an import statement of a package that is not installed
    return import_module("accelerate")


def _device(device: Device) -> torch.device:
    try:
        if isinstance(device, int):
            return torch.device("cuda", device)
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is no device") from error


def _check_map(model: nn.Module, devices: Mapping[str, Device]) -> None:
    weights = model.state_dict().keys()
    known = {"", *weights, *(name for name, _ in model.named_modules())}
    unknown = sorted(devices.keys() - known)
    if unknown:
        raise InputError(f"the device_map names {unknown[0]!r}, which this model has not")
    for device in devices.values():
        if device != _DISK:
            _device(device)
    for weight in weights:
        if not any(_lies_in(weight, name) for name in devices):
            raise InputError(f"the device_map leaves {weight} out", hint='Add "" for the rest.')


def _disjoint(model: nn.Module, devices: Mapping[str, Device]) -> dict[str, Device]:
    """The same places, no entry within another: hooks of both would move a layer twice."""
    made: dict[str, Device] = {}

    def visit(name: str, module: nn.Module, around: Device | None) -> None:
        device = devices.get(name, around)
        if not any(other != name and _lies_in(other, name) for other in devices):
            if device is not None:
                made[name] = device
            return
        start = f"{name}." if name else ""
        for child, part in module.named_children():
            visit(start + child, part, device)
        for leaf, _ in module.named_parameters(recurse=False):
            own = devices.get(start + leaf, device)
            # no hook would fetch it: those stand at whole modules
            made[start + leaf] = "cpu" if own == _DISK or own is None else own

    visit("", model, None)
    return made


def _lies_in(weight: str, module: str) -> bool:
    return not module or weight == module or weight.startswith(module + ".")
