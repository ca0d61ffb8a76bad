"""What several tests share; no test file imports another."""
