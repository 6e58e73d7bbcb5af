"""What the page shows and keeps, without Gradio: readings, score bars, words, style."""
