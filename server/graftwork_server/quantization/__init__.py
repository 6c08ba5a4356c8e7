"""Linear modules whose weights are held quantized, drop-in for nn.Linear."""
