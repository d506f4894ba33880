"""How the site is built: `make docs`. Everything is local: no font, script or style comes from elsewhere."""

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

sys.path.insert(0, str(Path(__file__).parent))

import generate

import harness

project = "harness"
version = release = harness.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"harness {release}"
html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
suppress_warnings = ["myst.header"]  # pages that include others begin below the first level


def _inline(self, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _plain_types(app, what, name, thing, options, signature, answer):
    """Annotated types by what they annotate: the bounds are in the reference of the options."""
    while signature and (start := signature.find("Annotated[")) >= 0:
        first = depth = 0
        for end in range(start + len("Annotated["), len(signature)):
            depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(signature[end], 0)
            if depth == 0 and signature[end] == "," and not first:
                first = end
            if depth < 0:
                break
        signature = signature[:start] + signature[start + len("Annotated[") : first or end] + signature[end + 1 :]
    return signature, answer


def setup(app) -> dict:
    """Formulas as MathML, which browsers draw; pages whose content is in the code, written before any is read."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("autodoc-process-signature", _plain_types)
    app.connect("builder-inited", lambda app: generate.write(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True}
