"""The page: a module per tab (`single_tab`, `study_tab`, `batch_tab`); the other modules but `panel` and `uploads` turn
values into HTML and know nothing of Gradio.

The scripts in `assets` draw the maps and lay them over the radiograph in the browser, so that another observation,
opacity or zoom needs no request.
"""
