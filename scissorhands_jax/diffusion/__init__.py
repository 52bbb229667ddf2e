"""Stable Diffusion v1: its networks, samplers and tokenizer, its weights in and out, and images from it.

`networks` has the UNet, the VAE and the text encoder as `Model`s, so that every `Method` of the library works on the
UNet with `losses.noise_loss`. `schedules` has the noise and the samplers. The commands `scissorhands sd` are in
`importing`, `exporting`, `generating`, `unlearning`, `planning` and `evaluating`, and work on a `model_folder`.
"""
