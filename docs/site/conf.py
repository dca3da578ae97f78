"""Sphinx's settings. The pages are written by `build.py`."""

project = "PyKittens"
author = "The PyKittens developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "PyKittens"
html_static_path: list[str] = []
exclude_patterns: list[str] = []
highlight_language = "python"
nitpicky = True
suppress_warnings = ["myst.header"]  # texts of the repository may begin with a second level
