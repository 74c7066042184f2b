"""What the diffusion methods share: their weights, the tagger, text, latents, tiles, sizes."""
