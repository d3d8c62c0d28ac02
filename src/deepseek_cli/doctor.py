"""`deepseek doctor`: what this machine can do, and which kernels it gets."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Show CPU features, memory and its bandwidth, versions, and which backend each kernel got and why."""
    from rich.console import Console
    from rich.table import Table

    from deepseek.engine.memory import available_memory
    from deepseek.hub.cache import cache_dir
    from deepseek.kernels.cpu.extension import native, obstacle
    from deepseek.kernels.registry import bind
    from deepseek.machine import describe_machine, measure_bandwidth

    console = Console()
    machine = Table(title="Machine", show_header=False, title_justify="left")
    for key, value in describe_machine().items():
        machine.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
    machine.add_row("memory free", f"{available_memory() / 2**30:.1f} GiB")
    machine.add_row("read bandwidth", f"{measure_bandwidth() / 1e9:.1f} GB/s")
    machine.add_row("model cache", str(cache_dir()))
    console.print(machine)

    reason = obstacle()
    if reason is None:
        isas = ", ".join(native().available_isas())
        console.print(f"Native kernels: {isas}. int8, int4, K-quants and fp16 run on the first.\n")
    else:
        console.print(f"Native kernels: none; {reason}.\n", style="yellow")
    kernels = Table(title="Torch kernels on cpu", title_justify="left")
    for column in ("op", "backend", "why"):
        kernels.add_column(column)
    for binding in bind("cpu").bindings.values():
        kernels.add_row(binding.op, binding.backend, binding.reason)
    console.print(kernels)
    if available_memory() < 2 * 2**30:
        typer.secho("less than 2 GiB of memory is free: only small models will load", fg="yellow")
