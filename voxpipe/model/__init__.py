"""The mathematics of Voxtral Realtime on MLX. Weights and stream state are kept apart."""
