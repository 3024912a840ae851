"""Self-contained HTML pages, and figures of Matplotlib that follow a page's colours."""

import base64
import hashlib
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

COLOURS = ("#0b5c8a", "#c8553d", "#4f8a3c", "#7a4fa3", "#b8860b", "#2a9d8f", "#8c564b", "#555555")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "svg.fonttype": "none", "svg.hashsalt": "anyecg", "axes.edgecolor": "#5b6675", "axes.labelcolor": "#1c2430",
    "text.color": "#1c2430", "xtick.color": "#1c2430", "ytick.color": "#1c2430", "savefig.facecolor": "none",
    "axes.facecolor": "none",
}  # fmt: skip
# What page.css calls these colours; it has others for a dark screen.
_VARIABLES = {
    "#1c2430": "--ink", "#5b6675": "--soft", "#b9c0c9": "--mid", "#e6eaee": "--grid",
    **{colour: f"--c{number}" for number, colour in enumerate(COLOURS)},
}  # fmt: skip
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def svg(figure, **options):
    """Return a figure as an SVG to stand in a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), **options)
    text = file.getvalue()[file.getvalue().index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)


def page(template, *, script="", **values):
    """Render one of the templates beside this file.

    Parameters
    ----------
    template : str
    script : str
        Name of the script to stand in the page; its policy lets no other run.

    Returns
    -------
    str
    """
    environment = Environment(
        loader=PackageLoader("anyecg.app", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    source, policy = "", _POLICY
    if script:
        source = environment.get_template(script).render()
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return environment.get_template(template).render(policy=policy, script=Markup(source), **values)
