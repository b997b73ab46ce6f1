"""What machines are: units, schema, catalogue and topology. Imports nothing of ours."""
