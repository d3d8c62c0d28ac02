"""``deepseek models``: the built-in names."""

from __future__ import annotations


def models() -> None:
    """List the built-in models: size, licence, and where they are if they are downloaded."""
    from rich.console import Console
    from rich.table import Table

    from deepseek.hub.cache import cache_dir, cached_model
    from deepseek.hub.registry import known_models

    table = Table("name", "size", "licence", "cached", "what it is", "path", box=None, pad_edge=False)
    for model in known_models():
        path = cached_model(model)
        name = model.name + "".join(f"\n  = {alias}" for alias in model.aliases)
        where = str(path) if path else ""
        size = f"{model.size / 1e6:,.0f} MB"
        table.add_row(name, size, model.licence, "yes" if path else "no", model.description, where)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a pipe gets whole lines
    console.print(table)
    console.print(
        f"\nCache: {cache_dir()}. A Hugging Face id (org/name), a folder or a .gguf file works as a name too."
    )
