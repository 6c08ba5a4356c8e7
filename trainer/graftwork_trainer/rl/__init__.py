"""The arithmetic of reinforcement learning from rewards: no model, no server, no files."""
