"""What tuning is worth: the examples trained with fixed schedules, and the same examples tuned by autolrs."""
