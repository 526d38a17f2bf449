"""A plan as people read it: one page, or a row per job of a sweep."""

from __future__ import annotations

import textwrap

from .estimate import Plan

WIDTH = 120
COLUMNS = ("parameters", "tokens", "GB/device", "FLOPs/token", "active", "FLOPs", "hours", "kWh", "euro")


def page(plan: Plan) -> str:
    """The whole plan."""
    m, flops, memory = plan.model, plan.flops, plan.memory
    parts = ", ".join(f"{name} {count:,}" for name, count in plan.parameters.items())
    positions = range(len(m.topk.topk_layers(m.n_layers)))
    ks = {(m.topk.final_k(i, m.site_width(site)), m.site_width(site)) for i in positions for site in m.topk.sites}
    count = len(positions) * len(m.topk.sites)
    sites = f"{count} site{'s' if count > 1 else ''}, " + ", ".join(f"k {k} of {width}" for k, width in sorted(ks))
    lines = {
        "model": f"{m.n_layers} blocks of width {m.d_model}, {m.n_heads} heads, MLP {m.d_ff}, vocabulary "
        f"{m.vocab_size:,}, windows of {m.seq_len}",
        "TopK": sites if m.topk.sites else "none: dense",
        "parameters": f"{sum(plan.parameters.values()):,}: {parts}{' (tied to the embedding)' if m.tied else ''}",
        "training": f"{plan.tokens:,} tokens in {plan.steps:,} steps of {plan.batch_tokens:,}, "
        f"{plan.tokens / sum(plan.parameters.values()):.3g} tokens per parameter",
        "step of a device": f"{plan.micro_batches} micro-batch{'es' if plan.micro_batches > 1 else ''} of "
        f"{plan.micro_windows} windows, {plan.precision}",
        "memory per device": f"{_bytes(memory.total)}{_of(plan)}: weights {_bytes(memory.weights)}, gradients "
        f"{_bytes(memory.gradients)}, optimizer {_bytes(memory.optimizer)}, activations and temporaries "
        f"{_bytes(memory.activations)}",
        **({} if plan.fits else {"DOES NOT FIT": f"less memory is needed with {_remedies(plan)}"}),
        "FLOPs per token": f"{flops.training:.3g} dense-equivalent ({flops.training_causal:.3g} with causal "
        f"attention), {flops.active:.3g} active if products skipped TopK's zeros ({flops.active / flops.training:.0%})"
        + (
            f"; {plan.computed_flops:.3g} with what activation checkpointing computes again"
            if plan.computed_flops > flops.training
            else ""
        ),
        "FLOPs in all": f"{plan.total_flops:.3g}",
        "device": f"{plan.devices} x {plan.device}",
        "time": "not known" if plan.seconds is None else _time(plan),
        "energy": "not known: give plan.watts" if plan.kwh is None else f"{plan.kwh:,.3g} kWh",
        "cost": "not known: give plan.euro_per_gpu_hour" if plan.euro is None else f"{plan.euro:,.2f} euro",
    }
    if plan.seconds is None:
        lines["energy"] = lines["cost"] = "not known"
    width = max(map(len, lines)) + 2
    wrapped = [
        textwrap.fill(text, WIDTH, initial_indent=name.ljust(width), subsequent_indent=" " * width)
        for name, text in lines.items()
    ]
    notes = [textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") for note in plan.assumptions]
    return "\n".join([*wrapped, "", "Assumed:", *notes])


def header() -> str:
    """The names of the columns of ``row``."""
    return _cells(COLUMNS) + "  job"


def row(plan: Plan, job: str) -> str:
    """The plan in a line; a dash for what is not known."""
    known = (plan.seconds and plan.seconds / 3600, plan.kwh, plan.euro)
    cells = (
        f"{sum(plan.parameters.values()):,}",
        f"{plan.tokens:,}",
        f"{plan.memory.total / 1e9:,.2f}" + (f" > {(plan.capacity or 0) / 1e9:,.0f}" if not plan.fits else ""),
        f"{plan.flops.training:.3g}",
        f"{plan.flops.active / plan.flops.training:.0%}",
        f"{plan.total_flops:.3g}",
        *("-" if value is None else f"{value:,.3g}" for value in known),
    )
    return f"{_cells(cells)}  {job}"


def _cells(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.rjust(max(len(name), 11)) for cell, name in zip(cells, COLUMNS, strict=True))


def _bytes(count: float) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if count >= u or u == 1)
    return f"{count / unit:,.3g} {name}"


def _of(plan: Plan) -> str:
    return "" if plan.capacity is None else f" of {_bytes(plan.capacity)}"


def _remedies(plan: Plan) -> str:
    """What would need less memory, of that which is not chosen yet."""
    memory = plan.memory
    assert plan.capacity is not None
    # What a micro-batch needs is nearly proportional to its windows.
    room = (plan.capacity - (memory.total - memory.activations)) / max(memory.activations, 1)
    windows = int(plan.micro_windows * room)
    ways = {
        f"training.micro_batch_tokens={windows * plan.model.seq_len}": windows > 0,
        "trainer.activation_checkpointing=block_sparse": plan.checkpointing != "block_sparse",
        "trainer.precision=bf16-true": plan.precision != "bf16-true",
        "a smaller model": True,
    }
    *others, last = (way for way, left in ways.items() if left)
    return f"{', '.join(others)} or {last}" if others else last


def _time(plan: Plan) -> str:
    assert plan.seconds is not None
    unit, name = next(
        (u, n)
        for u, n in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
        if plan.seconds >= 2 * u or u == 1
    )
    return (
        f"{plan.seconds / unit:,.3g} {name}, {plan.tokens / plan.seconds:,.0f} tokens/s, {plan.device_hours:,.3g} "
        f"device hours"
    )
