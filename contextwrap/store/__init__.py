"""What is kept: the `Store` protocol, and the engines behind it."""
