"""Load and run an artifact: needs NumPy and TVM's runtime, and neither compiler nor PyTorch."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from kernels.reference import Array
from targets import machines
from tune.errors import SetupError, UsageError
from tune.pins import PINS, check_pins

HOST_MEMORY = (1, 3)  # DLPack's kDLCPU, and kDLCUDAHost: pinned, and the CPU's all the same
ALIGNMENT = 64  # bytes; compiled code loads whole vectors
# How often a thread of TVM's pool looks for work before it sleeps: for 4 ms. By TVM's own default,
# 300,000, it kept a core busy for 120 ms after each inference (sapphirerapids,
# /proc/PID/task/*/schedstat, 2026-11-28).
SPIN_COUNT = 10_000
GPU_TURN = threading.RLock()  # while one network records its graph, CUDA refuses others' calls


class Network:
    """A loaded network; call it with a batch of images.

    input_shape  (N,H,W,3), RGB
    dtype        of the images: floats are value / 127.5 - 1, uint8 is 0 to 255

    One call at a time: a network has one memory for what lies between its layers. What is to run at
    once needs one each: a clone for each of Python's threads, which compute side by side, since a
    call lets others run; or one loaded in each process. Those on a GPU take turns.
    """

    def __init__(self, module: Any, manifest: dict[str, Any], device: Any) -> None:
        from tvm.runtime import empty
        from tvm.runtime.vm import VirtualMachine

        self._module, self._device = module, device
        self._turn = GPU_TURN if manifest["target"]["kind"] == "cuda" else nullcontext()
        self._machine = VirtualMachine(module, device)
        self._main = self._machine["main"]
        self.manifest = manifest
        self.input_shape = tuple(manifest["input"]["shape"])
        self.dtype: str = manifest["input"]["dtype"]
        self._fixed: tuple[Any, ...] = ()  # image and logits, where a GPU's graph has them
        if manifest["target"]["kind"] == "cuda":
            with self._turn:
                self._fixed = tuple(
                    empty(tuple(port["shape"]), port["dtype"], device)
                    for port in (manifest["input"], manifest["output"])
                )

    def __call__(self, images: Any) -> Array:
        """Logits (N,classes) of `images`, a NumPy array or any DLPack tensor.

        UsageError when they have another shape or dtype than the network was built for, or lie in
        memory of another device.
        """
        with self._turn:
            logits: Array = self.run(self.bind(images)).numpy()
        return logits

    def many(self, images: Any) -> Array:
        """Logits (M,classes) of any number of images (M,H,W,3), a NumPy array.

        They are computed batch after batch, the last one filled up with zeros.
        """
        images = np.asarray(images)
        batch = self.input_shape[0]
        spare = np.zeros((-len(images) % batch, *images.shape[1:]), images.dtype)
        padded = np.concatenate([images, spare]) if len(spare) else images
        logits = [self(padded[at : at + batch]) for at in range(0, len(padded), batch)]
        nothing = np.zeros(
            (0, *self.manifest["output"]["shape"][1:]), self.manifest["output"]["dtype"]
        )
        return np.concatenate([nothing, *logits])[: len(images)]

    def clone(self) -> Network:
        """Another for another thread; it shares the library and its weights."""
        return Network(self._module, self.manifest, self._device)

    def bind(self, images: Any) -> Any:
        """`images` as a tensor of TVM's on its device, without a copy where the memory allows.

        A network on a GPU copies them to where it reads: what is bound last is what it sees.
        """
        import tvm

        _check_memory(images, self._device)
        if isinstance(images, np.ndarray):
            images = np.ascontiguousarray(images)
            aligned = images.ctypes.data % ALIGNMENT == 0 and images.flags.writeable
            tensor = tvm.runtime.from_dlpack(images) if aligned else tvm.runtime.tensor(images)
        else:
            try:
                tensor = tvm.runtime.from_dlpack(images)
            except RuntimeError:  # not contiguous, or not aligned
                tensor = tvm.runtime.tensor(np.ascontiguousarray(np.from_dlpack(images)))
        shape, dtype = tuple(int(size) for size in tensor.shape), str(tensor.dtype)
        if shape != self.input_shape or dtype != self.dtype:
            raise UsageError(
                f"images are {dtype} {shape}; expected {self.dtype} {self.input_shape}, NHWC; "
                f"convert them, or build for another --batch, --resolution, --dtype or --input"
            )
        if self._fixed:
            with self._turn:
                return tensor.copyto(self._fixed[0])
        return tensor if tensor.device == self._device else tensor.copyto(self._device)

    def run(self, images: Any) -> Any:
        """The logits as a tensor of TVM's, for images that `bind` returned.

        On a GPU it is one launch, and the same tensor every time.
        """
        with self._turn:
            return self._main(*(self._fixed or (images,)))

    def instrument(self, function: Any) -> None:
        """Let `function` see each call of the virtual machine, before and after it, from now on.

        Its arguments are those that TVM's `VirtualMachine.set_instrument` names. On a GPU all
        kernels are one call.
        """
        self._machine.set_instrument(function)


def load(path: str | Path, threads: int | None = None) -> Network:
    """The network in the library at `path`, to run on so many threads; the manifest's by default.

    The thread count holds for the process, as `use_threads` says.
    UsageError when the files are missing or no artifact; SetupError when this machine or TVM cannot
    run it.
    """
    library = Path(path)
    manifest = read_manifest(library)
    check_pins()
    _check_machine(manifest, library)
    check_library(manifest, library)
    count = threads or manifest["threads"]
    use_threads(count)
    import tvm

    device = tvm.cpu()
    if manifest["target"]["kind"] == "cuda":
        load_cuda()
        device = tvm.cuda()
    return Network(tvm.runtime.load_module(str(library)), manifest, device)


def use_threads(count: int) -> None:
    """Let TVM run on `count` threads in this process; only before its first parallel loop.

    TVM has one pool for each thread that calls, sized when it first works. It takes both: the
    variable sizes the pool, the call sets how much of it is used. Its threads are bound to cores
    only when they are all that the machine has: TVM counts cores from the first, where several
    processes would meet. TVM_BIND_THREADS=0 or 1 decides otherwise. When there is no more work they
    sleep soon, as TVM_THREAD_POOL_SPIN_COUNT says.
    """
    os.environ["TVM_NUM_THREADS"] = str(count)
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", str(SPIN_COUNT))
    os.environ.setdefault("TVM_BIND_THREADS", str(int(count >= (os.cpu_count() or 1))))
    import tvm

    tvm.get_global_func("runtime.config_threadpool")(1, count)


def read_manifest(library: Path) -> dict[str, Any]:
    """The manifest beside `library`. UsageError when either is missing or cannot be read."""
    path = library.with_suffix(".json")
    if not library.is_file():
        raise UsageError(
            f"no library at {library}; expected a .so that build has written; "
            f"run: python -m tune build --target x86 -o {library}"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        (
            tuple(manifest["input"]["shape"]),
            manifest["input"]["dtype"],
            manifest["threads"],
            manifest["tvm"],
        )
        manifest["target"]["kind"], manifest["target"]["device"], manifest["library_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"no manifest can be read at {path}; expected the .json that build writes beside the "
            f".so; build it again, or copy both files"
        ) from None
    return manifest


def load_cuda() -> None:
    """Load the GPU's side of TVM's runtime. SetupError when it cannot be had."""
    from targets import cuda_toolkit

    try:
        cuda_toolkit.load_runtime()
    except cuda_toolkit.ToolkitError as error:
        raise SetupError(str(error)) from None


def _check_memory(images: Any, device: Any) -> None:
    """UsageError when `images` are no tensor, or lie where neither this CPU nor `device` reads."""
    if not hasattr(images, "__dlpack_device__"):
        raise UsageError(
            f"images are of type {type(images).__name__}; expected a NumPy array or another "
            f"tensor that speaks DLPack; convert them with numpy.asarray"
        )
    kind, number = images.__dlpack_device__()
    own = (device.dlpack_device_type(), device.index)
    if kind not in HOST_MEMORY and (kind, number) != own:
        raise UsageError(
            f"images lie on device {int(kind)}:{number}, as DLPack counts; expected the memory of "
            f"this CPU{'' if own[0] in HOST_MEMORY else ' or of the GPU that computes'}; copy them "
            f"there, in PyTorch with images.cpu()"
        )


def _check_machine(manifest: dict[str, Any], library: Path) -> None:
    """SetupError when the artifact needs another TVM or another CPU."""
    if manifest["tvm"] != PINS["apache-tvm"]:
        raise SetupError(
            f"{library} was built with TVM {manifest['tvm']}; expected {PINS['apache-tvm']}, whose "
            f"byte code this runtime reads; build it again"
        )
    made_for = manifest["target"]
    kind = machines(made_for["kind"])
    target = kind.DEVICES.get(made_for["device"])
    if target is None or not kind.can_run(target):
        raise SetupError(
            f"{library} was built for {made_for['device']}, whose code this machine cannot run; "
            f"expected a build for this machine; run: python -m tune build --target x86"
        )


def check_library(manifest: dict[str, Any], library: Path) -> None:
    """UsageError when the library is another, or cut short: to map that may end the process."""
    if hashlib.sha256(library.read_bytes()).hexdigest() != manifest["library_sha256"]:
        raise UsageError(
            f"{library} is not the library that its manifest describes; expected the two files of "
            f"one build; build it again, or copy both files"
        )
