"""Where weights come from: names and layouts, strict loading, conversion, the model hub."""
