"""The pages of the demo. Gradio appears here and in `app.py`, and nowhere else."""
