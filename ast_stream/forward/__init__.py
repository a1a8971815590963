"""The forwarder process, `ast-stream forward`: durable messages of this box to brokers."""
