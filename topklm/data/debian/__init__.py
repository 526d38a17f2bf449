"""Text to train on from Debian's documentation packages: downloaded, stripped to prose, a JSON Lines file each."""
