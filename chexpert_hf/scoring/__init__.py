"""Score radiographs with a model: predictions, saliency maps, and the runtimes that compute them."""
