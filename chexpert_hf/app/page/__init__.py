"""The page: `start`, `listing` and `panel` lay it out; all other modules know nothing of Gradio.

Its scripts in `assets` draw the maps and lay them over the radiograph in the browser, so that another observation, gray
window or zoom needs no request. `viewer.js` is a module that knows nothing of the page.
"""
