"""PURE: perceive, understand and restore, as a model, a decoder and a pipeline."""
