"""The long-lived process: streams in, events out, signals obeyed."""
