"""What is measured: time, memory, deviation, and the distance to real images."""
