"""Sphinx's settings for the site. The builder passes what differs between builds (title, commit) as overrides."""

project = "GPG paper companion"
extensions = ["myst_nb", "gpg_repro.site.mathml", "gpg_repro.site.outside"]
html_theme = "furo"
html_static_path = ["static"]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_use_index = False
exclude_patterns = ["**/.ipynb_checkpoints"]
pygments_style, pygments_dark_style = "a11y-light", "a11y-dark"

# The notebooks arrive executed.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
# Widgets would be fetched from another host; what they stand for is shown as their plain form.
nb_ipywidgets_js = {}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
