"""Ways to tell people and programs of an alert; one module for each type of action."""
