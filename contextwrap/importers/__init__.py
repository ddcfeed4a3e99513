"""What comes from elsewhere: files of conversations become sealed log calls and take the same way as live ones."""
