"""From feedback to data that trains: examples, scrubbing, snapshots and their report. No torch."""
