"""What people touch, and the durable record of it."""
