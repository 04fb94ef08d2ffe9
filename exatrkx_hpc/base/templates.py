"""Render the shipped templates. Templates have only `for` and `if`; everything else is a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from exatrkx_hpc.base.assets import asset


def render(template: str, *, filters: Mapping[str, Callable[..., str]] | None = None, **values: object) -> str:
    """Return the text of a shipped template, such as `jobs/farm.sbatch.j2`, with `values` filled in.

    Raises jinja2.UndefinedError for a name that the template uses but that has no value.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # a tenth of a command's start, seldom needed

    path = asset(template)
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Scripts and configurations quote their values with filters; HTML is escaped here.
        autoescape=template.endswith(".html.j2"),
    )
    environment.filters.update(filters or {})
    return environment.get_template(path.name).render(**values)
