"""What may be pulled: rules, the function that decides by them, and the gate through which all content goes."""
