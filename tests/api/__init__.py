"""What clients ask and what they are answered."""
