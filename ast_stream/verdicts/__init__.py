"""What people said of events: reviewed clips as training material, and verifiers fitted to them."""
