"""The pages' templates, by file name: everything is escaped, and a name that is not given is an error."""

import jinja2


def template(name: str) -> jinja2.Template:
    """A template of this folder."""
    loader = jinja2.PackageLoader("cvsi.evaluation.report", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
