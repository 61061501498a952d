"""The machine a stage runs on (device, number format, threads, seed) and who owns a run.

Ownership: killing `dvc` leaves the stage's process alive, and a rerun would mix two writers. So a stage holds a lock
while it works, and ends itself as soon as the `dvc` (or the driver) that started it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunemill import warm
from tunemill.errors import UserError
from tunemill.params import Params

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]


class RuntimeParams(Params):
    """The machine; section `runtime` of params.yaml."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    """Where tensors live; auto takes the first of cuda, mps, cpu that is there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Number format of weights while computing; auto takes bfloat16 where a short measurement finds it faster."""
    threads: int = Field(ge=1, le=1024)
    """CPU threads. Part of the result: sums are split among them."""


@dataclass(frozen=True)
class Runtime:
    """The machine as resolved: what `run` gets when it asks for `runtime: Runtime`."""

    device: str
    dtype: Dtype
    threads: int
    processes: int = 1
    """Processes that compute one result together, started by torchrun or accelerate."""
    rank: int = 0
    """Which of them this is; the first one writes."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format as torch knows it."""
        import torch

        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


def set_threads(threads: int) -> None:
    """Fix the number of threads before any numeric library is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # does not burn the core that another process needs
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forking after its threads start would deadlock


TIGHT_MALLOC = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""glibc's settings for a process that makes and drops large tensors.

torch asks for aligned memory, and glibc gives back the splinters of the alignment, some 64 bytes, before and after each
tensor. By default it keeps them on lists for small blocks, where the first small object takes them: the hole that the tensor
leaves then is a little too small for the next one of the same size. Without these lists splinters and hole become one again.
LoRA of the default model peaked at 3.1 instead of 3.8 to 4.3 GiB, at the same speed."""


def tighten_malloc() -> None:
    """Start this process again with `TIGHT_MALLOC`, which glibc reads only at the start; elsewhere do nothing.

    It stays the same process to whoever started it. What the user has set is left alone.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ or "glibc" not in _c_library():
        return
    os.environ["GLIBC_TUNABLES"] = TIGHT_MALLOC
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        return ""  # another C library


def workers() -> tuple[int, int]:
    """(processes that torchrun or accelerate started for one result, which of them this is)."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def resolve(params: RuntimeParams, memory: Path) -> Runtime:
    """Choose device and number format by capability; of several devices each process takes its own.

    Args:
        params: section `runtime`.
        memory: file that remembers the measurement, so that one machine always gives one answer.

    Raises:
        UserError: the device asked for is not there.
    """
    import torch

    torch.set_num_threads(params.threads)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = next(name for name, found in there.items() if found) if params.device == "auto" else params.device
    if not there[device]:
        raise UserError(
            f"this machine has no {device} device",
            where="params.yaml: runtime.device",
            expected="one of auto, " + ", ".join(name for name, found in there.items() if found),
            exit_code=2,
        )
    processes, rank = workers()
    if device == "cuda" and processes > 1:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if params.dtype != "auto":
        dtype = params.dtype
    elif device == "cuda":
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    elif device == "mps":
        dtype = "float32"
    else:
        dtype = _faster_cpu_dtype(params.threads, memory)
    return Runtime(device, dtype, params.threads, processes, rank)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    import torch

    # CPU and MPS raise a plain RuntimeError.
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error).lower() for text in texts)


def _faster_cpu_dtype(threads: int, memory: Path) -> Dtype:
    """bfloat16 where it multiplies matrices at least 1.3 times as fast as float32 here.

    Processor flags do not tell: with AMX bfloat16 is several times as fast, with AVX512-BF16 alone it may take twice as
    long. So it is measured, once a machine (best of interleaved rounds), and remembered.
    """
    import platform

    import torch

    machine = f"{_processor()} {platform.machine()} torch {torch.__version__} threads {threads}"
    try:
        remembered = json.loads(memory.read_text(encoding="utf-8"))
        if remembered["machine"] == machine and remembered["dtype"] in ("float32", "bfloat16"):
            return "bfloat16" if remembered["dtype"] == "bfloat16" else "float32"
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        pass  # never measured, or the note is damaged: measure
    seconds: dict[Dtype, float] = {"float32": float("inf"), "bfloat16": float("inf")}
    operands = {
        name: (torch.ones(1024, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype))
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    with torch.no_grad():
        for _ in range(6):
            for name in seconds:
                began = time.perf_counter()
                torch.nn.functional.linear(*operands[name])
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    chosen: Dtype = "bfloat16" if seconds["float32"] >= 1.3 * seconds["bfloat16"] else "float32"
    from tunemill.checkpoints import write_json

    write_json(memory, {"machine": machine, "dtype": chosen, "seconds": seconds})
    return chosen


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or "unknown processor"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; deterministic kernels where torch has them."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # As use_deterministic_algorithms(True, warn_only=True), which imports the compiler too: a second, and none is used.
    torch.set_deterministic_debug_mode("warn")


def peak_memory(device: str) -> dict[str, int]:
    """Bytes at the peak so far, as a stage's timing names them.

    On CUDA `peak_memory_bytes` is what tensors had allocated on the device, as it is planned, and `host_peak_memory_bytes`
    the process's resident memory; elsewhere the one is the other.
    """
    if device != "cuda":
        return {"peak_memory_bytes": peak_memory_bytes()}
    import torch

    return {
        "peak_memory_bytes": int(torch.cuda.max_memory_allocated()),
        "host_peak_memory_bytes": peak_memory_bytes(),
    }


def free_bytes(device: str) -> int:
    """Memory that is free for tensors: the GPU's, or this machine's."""
    import psutil
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later is free too
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def release() -> None:
    """Give back what tensors that are gone have left allocated."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ── who owns a run ────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def ownership(path: Path, what: str, *, patience: float = 20.0) -> Iterator[None]:
    """Hold the lock `path` while the body runs.

    Args:
        path: lock file; it names the owner's process.
        what: what is being owned, for the message.
        patience: seconds to wait for an owner that is just ending.

    Raises:
        UserError: another process holds it still.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    # The kernel drops the lock with the process, however it ends: no stale lock is possible.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline, told = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "another process"
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"{what} is held by {holder}",
                        where=str(path),
                        expected="one run at a time in a checkout",
                        fix="wait for it, or end it (Ctrl-C there)",
                    ) from None
                if not told and patience > 0:
                    print(f"waiting for {holder}, which holds {what} …", file=sys.stderr, flush=True)
                    told = True
                time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} (since {time.strftime('%H:%M:%S')})\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def die_with(ancestors: list[Any], every: float = 0.5) -> None:
    """End this process and all its children once one of `ancestors` (psutil processes) is gone."""

    def watch() -> None:
        while all(_alive(each) for each in ancestors):
            time.sleep(every)
        with contextlib.suppress(OSError, ValueError):  # standard error may have been a pipe to the one that is gone
            print("the process that started this one is gone: ending", file=sys.stderr, flush=True)
        end_tree(os.getpid(), itself=False)
        os._exit(143)

    if ancestors:
        threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def owners() -> list[Any]:
    """The processes this one must not outlive: under DVC, everything from the parent up to the `dvc` process.

    A stage that was forked (`tunemill.warm`) answers to the process that asked for it, and to that one's parents.
    """
    import psutil

    if "DVC_STAGE" not in os.environ:
        return []
    chain = []
    try:
        above = psutil.Process(warm.client).parents()
    except psutil.NoSuchProcess:
        above = []
    for each in above:
        chain.append(each)
        try:
            words = each.cmdline()[:4]
        except psutil.Error:
            break
        # The program's own name, never a folder's: a checkout may lie under a path that has "dvc" in it.
        if any(Path(word).name in ("dvc", "flows.dvc_process") for word in words):
            return chain
    # DVC_STAGE is set and no dvc is above: whoever started this stage has gone while it started.
    print("the dvc that started this stage is gone: ending", file=sys.stderr, flush=True)
    os._exit(143)


def end_tree(pid: int, *, itself: bool = True, grace: float = 3.0) -> None:
    """End a process with everything below it: politely first, then for certain."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    if itself:
        family.append(process)
    for signal in ("terminate", "kill"):
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(each, signal)()
        _, family = psutil.wait_procs(family, timeout=grace)
        if not family:
            return


def _alive(process: Any) -> bool:
    import psutil

    try:
        # `is_running` compares start times, so a reused number does not count; a zombie has ended.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
