"""What an estimate takes: time and memory, measured in separate runs."""

import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

LONGEST = 8.0  # seconds: a longer call is not profiled, whose records would fill the memory themselves


def milliseconds(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """The median time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that tensors made by `call` hold at most, above what was held before it.

    On CUDA by the allocator's own count, on the CPU by the profiler's records of each allocation. None where
    the profiler has no records.
    """
    gc.collect()
    if device.type == "cuda":
        base = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - base
    records = _allocations(call)
    held = peak = 0
    for _, size in sorted(records, key=lambda record: record[0]):
        held += size
        peak = max(peak, held)
    return peak if records else None


def _allocations(call: Callable[[], Any]) -> list[tuple[int, int]]:
    """(nanosecond, bytes) of each allocation, and with minus of each release, in order."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or its library writes of itself on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = call()
        del kept
    results = recorded.profiler and recorded.profiler.kineto_results
    if not results:
        return []
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    return [(event.start_ns(), event.nbytes()) for event in events]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
