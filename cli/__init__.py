"""What a person types, reads and exports."""
