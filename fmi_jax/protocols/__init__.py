"""Protocols: ways to train and judge a backbone."""
