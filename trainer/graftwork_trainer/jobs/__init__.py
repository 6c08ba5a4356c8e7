"""Training jobs: the durable queue, the supervised worker, policies and canaries. No torch."""
