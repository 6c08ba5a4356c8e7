"""The loop from feedback to live: journal, datasets, jobs, recipes, evaluation."""
