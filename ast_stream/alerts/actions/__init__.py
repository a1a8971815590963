"""Ways to deliver an alert; one module for each type of action."""
