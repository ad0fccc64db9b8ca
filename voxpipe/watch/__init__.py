"""Watched folders: recordings in, transcripts out, with the folder itself as the only state."""
