"""Pages of HTML: their templates stand beside the commands, and begin with `page_head.html`."""

from typing import Any


def rendered(package: str, template: str, **values: Any) -> str:
    """The page of a template in the folder `commands` of the package. Every text is escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    folders = [PackageLoader(name, "commands") for name in (package, "numpygpt")]
    templates = Environment(
        loader=ChoiceLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(template).render(**values)
