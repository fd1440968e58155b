"""The method: bottlenecks in a layer, and the descent of their nats to the pixels."""
