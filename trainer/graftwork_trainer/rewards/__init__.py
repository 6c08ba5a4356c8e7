"""What an answer is worth: checks, plug-ins, reward adapters, judges, and their sums. No torch."""
