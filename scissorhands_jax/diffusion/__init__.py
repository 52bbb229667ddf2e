"""Stable Diffusion v1: its networks, samplers and tokenizer, its weights in and out, and images from it.

`networks` has the UNet, the VAE and the text encoder as `Model`s, so that every `Method` of the library works on the
UNet with `losses.noise_loss`; `schedules` the noise and the samplers; `weights`, `generate` and `evaluate` (with what
`nudity` counts and `quality` measures) what `scissorhands sd` does.
"""
