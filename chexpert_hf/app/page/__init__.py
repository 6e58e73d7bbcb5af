"""The page: a module per tab, and apart from them what they show.

Pure, from values to text: `reading` (scores and maps of radiographs), `result` (what the viewer shows), `html`, `text`,
`activations`, `model_facts`, `report`, `batch`. Wiring, the only modules that import Gradio: `uploads`, `panel`,
`single_tab`, `study_tab`, `batch_tab`. What runs in the browser is in `assets`: maps are drawn and laid over the
radiograph there, so that another observation, opacity or zoom asks the server for nothing.
"""
