"""What leaves the program: deltas, transcripts, JSON lines."""
