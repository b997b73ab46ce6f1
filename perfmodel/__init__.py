"""What running a given plan costs on a machine: time, memory, traffic, power and money."""
