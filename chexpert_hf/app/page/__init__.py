"""The page: `tabs` and `batch_tab` lay it out with `panel`; all other modules know nothing of Gradio.

The scripts in `assets` draw the maps and lay them over the radiograph in the browser, so that another observation,
opacity or zoom needs no request.
"""
