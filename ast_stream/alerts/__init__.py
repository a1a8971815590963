"""Alert rules as code: from events and health to alerts; pure, without clock, sockets or files."""
