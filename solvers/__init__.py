"""Which plan is best and how we know: scenarios, planners and the one solver backend."""
