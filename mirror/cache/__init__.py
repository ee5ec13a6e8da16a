"""What is kept, and what is on its way. Knows upstream by what it can be asked, and clients not at all."""
