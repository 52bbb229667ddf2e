"""The pages of the documentation, and in `hooks` what makes a site of them."""
