"""When a rule fires: one module for each kind of trigger."""
