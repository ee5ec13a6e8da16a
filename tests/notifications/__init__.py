"""What may be pulled."""
