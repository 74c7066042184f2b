"""Pictures in and out: reading, resizing, tiling, colour, degradation."""
