"""Noise levels, denoisers and samplers in one coordinate; needs torch and numpy alone."""
