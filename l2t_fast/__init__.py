"""Learn what and where to transfer, fast."""
