"""How a backbone is judged."""
