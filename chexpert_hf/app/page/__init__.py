"""The page: `start`, `listing` and `panel` build it from Gradio components; the other modules do not use Gradio.

Its scripts in `assets` draw the maps and lay them over the radiograph in the browser, so that another observation, gray
window or zoom needs no request. `viewer.js` does not depend on the rest of the page.
"""
