"""The noise process, the samplers, and the VAE with its latents."""
